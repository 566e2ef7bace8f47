"""Takes from this process, for good, what it needs no more: writing anywhere but in a few folders, and signals to others.

Landlock (Linux 5.13, no rights needed; <https://docs.kernel.org/userspace-api/landlock.html>) narrows a process and all that it
starts from inside, where a sandbox around it cannot tell them from their parent: both run as one user in one folder. So a
process that holds keys or writes a report forks, the child gives its rights up and only then runs foreign code.

Processes in the narrowed domain can neither trace those outside nor read their memory (version 1), nor signal them or reach their
abstract sockets (version 6, Linux 6.12). Sockets with a path are not covered.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every architecture
_VERSION = 1  # flag: tell the version
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE = 1 << 1
_CHANGE = sum(1 << bit for bit in range(4, 13))  # remove and make entries of every kind
_REFER = 1 << 13  # version 2: move between folders
_TRUNCATE = 1 << 14  # version 3
_SCOPES = 0b11  # version 6: abstract sockets, signals

_SHARED = (Path("/tmp"), Path("/dev/shm"))  # noqa: S108 - in the sandbox they are the job's own
_WRITTEN = (Path("/dev"), Path("/proc"))  # files there may be written, not made: devices, names of threads


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


@functools.cache
def version() -> int:
    """The kernel's version of Landlock; 0 where it has none."""
    try:
        return _call(_CREATE_RULESET, None, 0, _VERSION)
    except OSError:
        return 0


def lacking() -> str | None:
    """What this kernel cannot take from a process, in words; None where nothing is lacking."""
    if version() == 0:
        return (
            "Landlock is missing (Linux 5.13, in the kernel's `lsm=` list): a script can overwrite the program that "
            "records it, and the report about it"
        )
    if version() < 6:
        return f"Landlock {version()} is older than 6 (Linux 6.12): a script can signal the program that records it"
    return None


def restrict(writable: Iterable[Path]) -> str | None:
    """From now on this thread, and all that it starts, writes only in the folders `writable`, which must exist.

    `/tmp` and `/dev/shm` stay writable, but where a named folder lies below: then the name is what counts. Call it in a
    process with one thread. Returns what is `lacking`; as much is done as the kernel can."""
    folders = [path.resolve() for path in writable]
    if version() == 0:
        return lacking()
    folders += [path for path in _SHARED if path.is_dir() and not any(each.is_relative_to(path) for each in folders)]
    change = _WRITE_FILE | _CHANGE | (_REFER if version() >= 2 else 0) | (_TRUNCATE if version() >= 3 else 0)
    rules = _Ruleset(files=change, network=0, scopes=_SCOPES if version() >= 6 else 0)
    ruleset = _call(_CREATE_RULESET, ctypes.byref(rules), ctypes.sizeof(rules), 0)
    try:
        for folder in folders:
            _allow(ruleset, folder, change)
        for folder in _WRITTEN:
            _allow(ruleset, folder, _WRITE_FILE)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs")
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return lacking()


def _allow(ruleset: int, folder: Path, rights: int) -> None:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(allowed=rights, folder=descriptor)
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
