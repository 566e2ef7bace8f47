"""A hostile script: tries everything that a sandbox must refuse, and prints what came of each as one line of JSON.

It runs as a client's script does, inside the recorded trainer or the preflight. `data/probe.json` names what there is to be
reached: a secret file and a listening port of the host, and a socket as Docker's. Nothing here does harm where it succeeds.
"""

import ctypes
import fcntl
import json
import os
import platform
import pty
import signal
import socket
import sys
import termios
from pathlib import Path

GIVEN = json.loads(Path("data/probe.json").read_text())
PARENT = os.getppid()
ARM = platform.machine() == "aarch64"
LIBC = ctypes.CDLL(None, use_errno=True)
FOLDER = Path.cwd().parent
JOB = next(path for path in (FOLDER, *FOLDER.parents) if (path / "work").is_dir() and path.name in GIVEN["folders"])


def call(x86, arm, *arguments):
    """A system call by its number; raises `OSError` where the kernel refuses."""
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if LIBC.syscall(ctypes.c_long(arm if ARM else x86), *wide) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def connect(family, address):
    with socket.socket(family) as trying:
        trying.settimeout(5)
        trying.connect(address)


def type_into_the_terminal():
    _, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSTI, b"x")


def write(path):
    """For writing, as who overwrites a file would open it; nothing is written."""
    os.close(os.open(path, os.O_WRONLY))


def library():
    """One of the frozen program's own libraries."""
    place = Path(getattr(sys, "_MEIPASS", ""))
    return next(path for path in sorted(place.rglob("*.so*")) if path.is_file())


def replace(path):
    """As who puts another file in its place."""
    draft = Path("draft")
    draft.touch()
    draft.rename(path)


def docker():
    for path in (GIVEN["docker"], "/var/run/docker.sock"):
        connect(socket.AF_UNIX, path)


TRIES = {
    "the host's files": lambda: Path(GIVEN["secret"]).read_bytes(),
    "the list of users": lambda: Path("/etc/passwd").read_bytes(),
    "the host's own ports": lambda: connect(socket.AF_INET, ("127.0.0.1", GIVEN["port"])),
    "the network": lambda: connect(socket.AF_INET, ("192.0.2.1", 80)),
    "names (DNS)": lambda: socket.getaddrinfo("example.org", 80),
    "the metadata address": lambda: connect(socket.AF_INET, ("169.254.169.254", 80)),
    "Docker's socket": docker,
    "vsock": lambda: socket.socket(socket.AF_VSOCK),
    "packet sockets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "other netlink than routes": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12),
    "ptrace": lambda: call(101, 117, 16, PARENT, 0, 0),
    "the parent's memory": lambda: Path(f"/proc/{PARENT}/mem").open("rb").close(),
    "the parent's descriptors": lambda: list(Path(f"/proc/{PARENT}/fd").iterdir()),
    "process_vm_readv": lambda: call(310, 270, PARENT, None, 0, None, 0, 0),
    "pidfd_getfd": lambda: call(438, 438, os.pidfd_open(PARENT), 0, 0),
    "signals to the parent": lambda: os.kill(PARENT, signal.SIGCONT),
    "mount": lambda: call(165, 40, b"none", b"/tmp", b"tmpfs", 0, None),
    "mounting anew": lambda: call(430, 430, b"tmpfs", 0),
    "pivot_root": lambda: call(155, 41, b"/tmp", b"/tmp"),
    "a user namespace": lambda: call(272, 97, 0x10000000),
    "another's namespaces": lambda: call(308, 268, os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    "clone3": lambda: call(435, 435, None, 0),
    "BPF": lambda: call(321, 280, 0, ctypes.create_string_buffer(128), 128),
    "io_uring": lambda: call(425, 425, 1, ctypes.create_string_buffer(120)),
    "keys": lambda: call(250, 219, 0, -3, 0),
    "userfaultfd": lambda: call(323, 282, 1),
    "perf events": lambda: call(298, 241, ctypes.create_string_buffer(128), 0, -1, -1, 0),
    "files by handle": lambda: call(304, 265, -100, ctypes.create_string_buffer(16), 0),
    "kernel modules": lambda: call(313, 273, 0, b"", 0),
    "setuid to root": lambda: os.setuid(0),
    "sysctl": lambda: Path("/proc/sys/kernel/core_pattern").write_text("|/bin/true"),
    "typing into a terminal": type_into_the_terminal,
    "the system's programs": lambda: write("/usr/bin/env"),
    "the executable": lambda: write(sys.executable),
    "the runner's libraries": lambda: write(library()),
    "another library in its place": lambda: replace(library()),
    "the runner's folder": lambda: (JOB / "planted").touch(),
    "the request": lambda: write(JOB / "request.json"),
    "the report": lambda: (JOB / "report.json").write_text("{}"),
    "another report in its place": lambda: replace(JOB / "report.json"),
}
MUST_WORK = {
    "its own folder": lambda: Path("mine").write_text("x"),
    "temporary files": lambda: Path(os.environ["TMPDIR"], "mine").write_text("x"),
    "/tmp": lambda: Path("/tmp/mine").write_text("x"),
    "/dev/shm": lambda: Path("/dev/shm/mine").write_text("x"),
    "/dev/null": lambda: Path("/dev/null").write_text("x"),
    "programs": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0),
    "a fork": lambda: os._exit(0) if (child := os.fork()) == 0 else os.kill(child, signal.SIGKILL),
    "local sockets": lambda: socket.socketpair(),
    "its interfaces": lambda: socket.if_nameindex(),
}


def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    return None


print(
    json.dumps(
        {"refused": {n: outcome(t) for n, t in TRIES.items()}, "works": {n: outcome(t) for n, t in MUST_WORK.items()}}
    )
)
