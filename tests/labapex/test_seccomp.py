"""The filter's words are read by a machine of a few lines, for both architectures. The kernel's own reads them in the sandbox."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labapex import seccomp
from labapex.seccomp import ALLOW, KILL, refuse

X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}
ANY = st.integers(0, 2**64 - 1)
NUMBERS = {  # of calls whose arguments count
    "x86_64": {"clone": 56, "unshare": 272, "ioctl": 16, "socket": 41, "socketpair": 53},
    "aarch64": {"clone": 220, "unshare": 97, "ioctl": 29, "socket": 198, "socketpair": 199},
}
NO = refuse(errno.EPERM)


def answer(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter says to a call."""
    code = seccomp.program(machine)
    assert code is not None
    values = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, MACHINES[machine] if architecture is None else architecture, 0, *values)
    steps, at, held = list(struct.iter_unpack("=HBBI", code)), 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        match operation:
            case 0x20:
                held = int.from_bytes(data[value : value + 4], "little")
            case 0x15:
                at += if_true if held == value else if_false
            case 0x45:
                at += if_true if held & value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


@pytest.fixture(params=sorted(MACHINES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", ["ptrace", "bpf", "keyctl", "mount", "setns", "userfaultfd", "open_by_handle_at"])
def test_what_training_does_without_is_refused(machine: str, name: str) -> None:
    column = sorted(MACHINES, reverse=True).index(machine)
    assert answer(machine, seccomp._REFUSED[name][column]) == NO


def test_io_uring_and_clone3_seem_unknown_to_the_kernel(machine: str) -> None:
    assert {answer(machine, number) for number in (425, 426, 427, 435)} == {refuse(errno.ENOSYS)}


def test_calls_of_another_architecture_end_the_process(machine: str) -> None:
    others = {X86_64, AARCH64, I386} - {MACHINES[machine]}
    assert {answer(machine, 1, architecture=other) for other in others} == {KILL}


@given(st.integers(0, 2**30 - 1))
def test_the_second_set_of_calls_of_x86_is_refused_whole(number: int) -> None:
    assert answer("x86_64", 0x40000000 | number) == refuse(errno.ENOSYS)


@given(st.sampled_from(sorted(MACHINES)), ANY)
def test_a_process_or_thread_is_made_unless_a_namespace_is_asked_for(machine: str, flags: int) -> None:
    expected = NO if flags & seccomp.NAMESPACES else ALLOW
    assert answer(machine, NUMBERS[machine]["clone"], flags) == expected
    unshared = NO if flags & (seccomp.NAMESPACES | 0x80) else ALLOW
    assert answer(machine, NUMBERS[machine]["unshare"], flags) == unshared


@given(st.sampled_from(sorted(MACHINES)), ANY, ANY, ANY)
def test_sockets_are_unix_or_ip_or_tell_the_routes(machine: str, family: int, kind: int, protocol: int) -> None:
    family = family % 64 | (family & ~0xFFFFFFFF)
    low = family & 0xFFFFFFFF
    allowed = low in (1, 2, 10) or (low == 16 and protocol & 0xFFFFFFFF == 0)
    got = answer(machine, NUMBERS[machine]["socket"], family, kind, protocol)
    assert got == (ALLOW if allowed else refuse(errno.EAFNOSUPPORT))
    pair = answer(machine, NUMBERS[machine]["socketpair"], family, kind, protocol)
    assert pair == (ALLOW if low == 1 else refuse(errno.EAFNOSUPPORT))


@given(st.sampled_from(sorted(MACHINES)), ANY, ANY)
def test_devices_are_driven_but_nothing_is_typed_into_a_terminal(machine: str, request: int, argument: int) -> None:
    assert answer(machine, NUMBERS[machine]["ioctl"], 3, 0x5412, argument) == NO
    typing = request & 0xFFFFFFFF in (0x5412, 0x541C)
    assert answer(machine, NUMBERS[machine]["ioctl"], 3, request, argument) == (NO if typing else ALLOW)


@pytest.mark.parametrize(("name", "x86", "arm"), [("read", 0, 63), ("mlock", 149, 228), ("membarrier", 324, 283)])
def test_all_else_is_allowed(name: str, x86: int, arm: int) -> None:
    assert (answer("x86_64", x86), answer("aarch64", arm)) == (ALLOW, ALLOW)


def test_a_machine_whose_calls_are_not_known_has_no_filter() -> None:
    assert seccomp.program("riscv64") is None
