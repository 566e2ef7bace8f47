"""How root becomes the sandbox's user: in a user namespace that root owns, and then runs a program there.

Whoever makes a user namespace has every right over what runs in it. If the sandbox's user made the outermost one itself, any
other process of that user, outside, could attach a debugger to a job and read its keys, whatever the job forbids: a process
is "not dumpable" only to those without rights in its namespace. In a namespace of root's that knows this user alone, the
user can make the sandbox, and is a stranger to it from outside.

    python -m labapex.drop UID GID COMMAND ..
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000


def main(arguments: list[str]) -> None:
    """Become the user and exec the command; does not return. Raises `OSError` where the kernel refuses."""
    uid, gid, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    environment = given_environment()
    _own_namespace(uid, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.execve(command[0], command, environment)  # noqa: S606 - what the sandbox was asked to run; rights end here


def given_environment() -> dict[bytes, bytes]:
    """This process's environment as its starter gave it: what Python put into `os.environ` is nobody else's."""
    given = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in given if b"=" in entry)


def _own_namespace(uid: int, gid: int) -> None:
    """Move this process into a user namespace that maps the one user and group to themselves.

    Only who stays outside may write that mapping: a child does, before it ends."""
    os.setgroups([])
    ready_out, ready_in = os.pipe()
    this = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(ready_in)
        if os.read(ready_out, 1) == b"":  # it failed, and says why itself
            os._exit(0)
        for name, number in (("gid_map", gid), ("uid_map", uid)):
            Path(f"/proc/{this}/{name}").write_text(f"{number} {number} 1")
        os._exit(0)
    os.close(ready_out)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(ctypes.c_int(CLONE_NEWUSER)):
        code = ctypes.get_errno()
        raise OSError(code, f"a user namespace of root's own: {os.strerror(code)}")
    os.write(ready_in, b"\x01")
    os.close(ready_in)
    if os.waitpid(child, 0)[1]:
        raise OSError("the users of the namespace could not be named")


if __name__ == "__main__":
    main(sys.argv[1:])
