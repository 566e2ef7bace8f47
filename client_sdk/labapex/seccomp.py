"""The system calls that a confined program is refused, as a program for the kernel's classic BPF machine.

No compiler and no library is needed: a rule becomes a handful of eight-byte instructions, as told in seccomp(2) and in
<https://docs.kernel.org/networking/filter.html>. What is refused is what PyTorch, its compilers and CUDA can do without and what
kernels had their holes in: other address families, io_uring, BPF, keys, tracing, mounting, namespaces, modules. What
is not named here is allowed, and checked by all else that confines.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# name: (number on x86_64, number on aarch64), as in the kernel's syscall tables
_REFUSED = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_settime": (227, 112), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432), "fsopen": (430, 430), "fspick": (433, 433),
    "init_module": (175, 105), "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104),
    "keyctl": (250, 219), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241), "pidfd_getfd": (438, 438), "pivot_root": (155, 41), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "reboot": (169, 142), "request_key": (249, 218), "setdomainname": (171, 162), "sethostname": (170, 161),
    "setns": (308, 268), "settimeofday": (164, 170), "swapoff": (168, 225), "swapon": (167, 224), "syslog": (103, 116),
    "umount2": (166, 39), "userfaultfd": (323, 282), "vhangup": (153, 58),
}  # fmt: skip
_UNKNOWN = {  # programs ask for these first, and do without where the kernel does not know them
    "clone3": (435, 435),  # its flags lie in memory, where a filter cannot look
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425),
    "shmget": (29, 194),  # memory that belongs to no process and no file
}  # fmt: skip
_CLONE, _UNSHARE, _IOCTL = (56, 220), (272, 97), (16, 29)
_SOCKET, _SOCKETPAIR = (41, 198), (53, 199)
_ONLY_X86 = {"ioperm": 173, "iopl": 172, "modify_ldt": 154, "uselib": 134}

NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_TIME = 0x80  # to clone() these bits are a signal's number
TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal that the starter reads from
UNIX, IPV4, IPV6, NETLINK = 1, 2, 10, 16  # IP goes nowhere without interfaces; netlink lists them, for gloo and glibc

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
_X32 = 0x40000000  # bit in the numbers of x86_64's other set of calls

_LOAD, _EQUAL, _ANY, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
KILL, ALLOW = 0x80000000, 0x7FFF0000


def refuse(code: int) -> int:
    """The filter's answer: the call fails with this error."""
    return 0x00050000 | code


def program(machine: str) -> bytes | None:
    """The filter for `machine` as `platform.machine` names it; None for one whose calls are not known here."""
    if machine not in _ARCHITECTURES:
        return None
    column = list(_ARCHITECTURES).index(machine)
    code = [
        _op(_LOAD, _ARCHITECTURE),
        _op(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _op(_RETURN, KILL),
        _op(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += [*_if(_ANY, _X32, refuse(errno.ENOSYS))]
    for number in [numbers[column] for numbers in _REFUSED.values()] + (
        list(_ONLY_X86.values()) if column == 0 else []
    ):
        code += _if(_EQUAL, number, refuse(errno.EPERM))
    for numbers in _UNKNOWN.values():
        code += _if(_EQUAL, numbers[column], refuse(errno.ENOSYS))
    no = refuse(errno.EPERM)
    code += _call(_CLONE[column], [_argument(0), *_if(_ANY, NAMESPACES, no), _op(_RETURN, ALLOW)])
    code += _call(_UNSHARE[column], [_argument(0), *_if(_ANY, NAMESPACES | _NEW_TIME, no), _op(_RETURN, ALLOW)])
    typing = [step for request in TERMINAL_INPUT for step in _if(_EQUAL, request, no)]
    code += _call(_IOCTL[column], [_argument(1), *typing, _op(_RETURN, ALLOW)])
    families = [step for family in (UNIX, IPV4, IPV6) for step in _if(_EQUAL, family, ALLOW)]
    other = _op(_RETURN, refuse(errno.EAFNOSUPPORT))
    code += _call(_SOCKETPAIR[column], [_argument(0), *_if(_EQUAL, UNIX, ALLOW), other])
    route = [_op(_EQUAL, NETLINK, 1, 0), other, _argument(2), *_if(_EQUAL, 0, ALLOW), other]  # NETLINK_ROUTE
    code += _call(_SOCKET[column], [_argument(0), *families, *route])
    return b"".join([*code, _op(_RETURN, ALLOW)])


@contextmanager
def descriptor(machine: str) -> Iterator[int]:
    """The filter as an open file to be read once, which is how bubblewrap takes it."""
    file = os.memfd_create("seccomp")
    try:
        os.write(file, program(machine) or b"")
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction, struct sock_filter; jumps count instructions to be skipped."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _argument(index: int) -> bytes:
    """Load the low 32 bits of an argument: all that the kernel looks at in those that are asked about here."""
    return _op(_LOAD, 16 + 8 * index)


def _if(test: int, value: int, answer: int) -> list[bytes]:
    return [_op(test, value, 0, 1), _op(_RETURN, answer)]


def _call(number: int, body: list[bytes]) -> list[bytes]:
    """What is asked of one call's arguments; `body` ends with an answer whatever it finds."""
    return [_op(_EQUAL, number, 0, len(body)), *body]
