"""Groups on a folder that is shaped like the kernel's tree, and on the kernel's own (version 2), as far as it can be had here.

Real in `TestKernel`: groups, moving, handing a controller on and the rule against it, killing, deleting. The controller is
hugetlb, as a machine may have memory and pids in version 1; what those two do, the limits themselves, is played elsewhere."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from labapex_worker import cgroups
from labapex_worker.cgroups import Group

LIMITS = cgroups.limits(memory=1 << 30, processes=100)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The group of a service that delegates, with the daemon in a part of it."""
    unit = tmp_path / "system.slice" / "labapex-worker.service"
    (unit / "daemon").mkdir(parents=True)
    (unit / "daemon" / "cgroup.kill").touch()
    (unit / "cgroup.procs").touch()
    (unit / "cgroup.controllers").write_text("cpu memory pids\n")
    (unit / "cgroup.subtree_control").touch()
    (tmp_path / "own").write_text("0::/system.slice/labapex-worker.service/daemon\n")
    return unit


def test_a_service_that_delegates_a_part_to_its_daemon_can_have_groups_made(unit: Path, tmp_path: Path) -> None:
    assert cgroups.delegated(tmp_path / "own", tmp_path) == unit


@pytest.mark.parametrize(
    "own",
    [
        "0::/system.slice/labapex-worker.service\n",  # no part of its own: its processes are in the way
        "0::/user.slice/session-1.scope\n",
        "0::/\n",
        "12:memory:/system.slice\n11:pids:/system.slice\n",  # version 1
        "",
    ],
)
def test_elsewhere_no_group_is_made(unit: Path, tmp_path: Path, own: str) -> None:
    (tmp_path / "own").write_text(own)
    assert cgroups.delegated(tmp_path / "own", tmp_path) is None
    assert cgroups.delegated(tmp_path / "not there", tmp_path) is None


@pytest.mark.parametrize(
    "lacking", ["cgroup.controllers", "cgroup.procs", "cgroup.subtree_control", "daemon/cgroup.kill"]
)
def test_a_tree_without_what_is_needed_is_as_good_as_none(unit: Path, tmp_path: Path, lacking: str) -> None:
    (unit / lacking).unlink()
    assert cgroups.delegated(tmp_path / "own", tmp_path) is None


def test_controllers_that_were_not_delegated_limit_nothing(unit: Path, tmp_path: Path) -> None:
    (unit / "cgroup.controllers").write_text("cpu pids\n")
    assert cgroups.delegated(tmp_path / "own", tmp_path) is None


@pytest.mark.parametrize(
    ("there", "user", "moves"),
    [
        ([os.getpid()], 1000, True),
        ([os.getpid(), 1], 1000, False),  # a terminal's group: others are in it
        ([os.getpid()], 0, False),  # root may write all groups, whether they were delegated or not
    ],
    ids=["alone", "with others", "root"],
)
def test_a_daemon_alone_in_a_group_of_its_own_moves_into_a_part_of_it(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[int], user: int, moves: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    (tmp_path / "own").write_text("0::/system.slice/labapex-worker.service\n")
    (unit / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in there))
    (unit / "daemon" / "cgroup.procs").touch()
    cgroups.settle(tmp_path / "own", tmp_path)
    assert (unit / "daemon" / "cgroup.procs").read_text() == (str(os.getpid()) if moves else "")


def test_a_daemon_for_which_systemd_made_that_part_stays_there(
    unit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    cgroups.settle(tmp_path / "own", tmp_path)
    assert not (unit / "daemon" / "daemon").exists()
    cgroups.settle(tmp_path / "not there", tmp_path)


def test_a_group_is_made_beside_the_daemon_with_its_limits(unit: Path) -> None:
    group = Group(unit, "run")
    group.path.mkdir()
    (group.path / "memory.swap.max").touch()  # as a kernel with swap has it
    group.create(LIMITS)
    assert (unit / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert {file.name: file.read_text() for file in group.path.iterdir()} == {
        "memory.max": str(1 << 30), "memory.swap.max": "0", "pids.max": "100",
    }  # fmt: skip
    group.create(cgroups.limits(memory=1 << 29, processes=None))  # again, after a daemon that was killed
    assert (group.path / "pids.max").read_text() == "max"
    other = Group(unit, "other")
    other.create(LIMITS)
    assert not (other.path / "memory.swap.max").exists(), "a kernel without swap has no such file"


def test_a_run_that_goes_on_gets_its_limits_again_and_one_without_a_group_gets_none(unit: Path) -> None:
    group = Group(unit, "run")
    group.renew(LIMITS)
    assert not group.path.exists()
    group.create(LIMITS)
    (group.path / "memory.max").write_text("max")  # its controllers were taken back
    group.renew(LIMITS)
    assert (group.path / "memory.max").read_text() == str(1 << 30)


@pytest.mark.parametrize(
    ("counted", "ran_out"),
    [
        ("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n", True),
        ("low 0\nhigh 0\nmax 7\noom 0\noom_kill 1\noom_group_kill 0\n", False),  # of a host without memory
        ("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n", False),
        ("", False),
        (None, False),
    ],
)
def test_memory_ran_out_where_the_groups_own_limit_was_met_and_something_was_killed(
    unit: Path, counted: str | None, ran_out: bool
) -> None:
    group = Group(unit, "run")
    group.create(LIMITS)
    if counted is not None:
        group.events.write_text(counted)
    assert group.ran_out() is ran_out


def test_a_program_goes_into_its_group_before_it_becomes_itself(unit: Path) -> None:
    group = Group(unit, "run")
    group.create(LIMITS)
    said = subprocess.run(
        [*group.entering(), "sh", "-c", "echo $$ $1", "-", "x y"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{(group.path / 'cgroup.procs').read_text().strip()} x y\n"


def test_a_group_is_deleted_when_what_is_in_it_was_killed(unit: Path) -> None:
    group = Group(unit, "run")
    group.create(LIMITS)
    (group.path / "made by the run").mkdir()
    (group.path / "cgroup.kill").touch()

    def kernel() -> None:
        while (group.path / "cgroup.kill").read_text() != "1":
            pass
        for file in [path for path in group.path.iterdir() if path.is_file()]:
            file.unlink()

    plays = threading.Thread(target=kernel)
    plays.start()
    group.remove()
    plays.join()
    assert not group.path.exists()
    group.remove()


# -- the kernel's own tree ---------------------------------------------------------------------------------------------

HUGE = {"hugetlb.2MB.max": "0"}


def _mounted() -> Path | None:
    """Where version 2 is mounted, with the right to write."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.split(" - ")[0].split()[4], None, line.split(" - ")[1].split()[0]
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


@pytest.fixture
def kernel() -> Iterator[Path]:
    """A group of our own in the kernel's tree, to which hugetlb is handed on."""
    root = _mounted()
    if root is None:
        pytest.skip(
            "needs a tree of control groups, version 2, with the right to write: root, outside of most containers"
        )
    if "hugetlb" not in (root / "cgroup.controllers").read_text().split():
        pytest.skip("needs the controller hugetlb in the tree of version 2")
    before = (root / "cgroup.subtree_control").read_text().split()
    (root / "cgroup.subtree_control").write_text("+hugetlb")
    group = root / f"labapex-test-{uuid4().hex}"
    group.mkdir()
    yield group
    Group(root, group.name).remove()
    if "hugetlb" not in before:
        with suppress(OSError):  # somebody else has a group with it by now
            (root / "cgroup.subtree_control").write_text("-hugetlb")


def _in(group: Path, *line: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group), *line], stdout=subprocess.PIPE
    )


SETTLES = """
import sys
from pathlib import Path
from labapex_worker import cgroups
group = Path(sys.argv[1])
try:
    cgroups.Group(group, "run").create({"hugetlb.2MB.max": "0"})
except OSError as error:
    print("refused", error.errno)
cgroups.move_into_part(group)
cgroups.Group(group, "run").create({"hugetlb.2MB.max": "0"})
print(Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2], (group / "run/hugetlb.2MB.max").read_text().strip())
"""


def test_on_a_real_tree_a_daemon_hands_controllers_on_only_once_it_is_in_a_part_of_its_own(kernel: Path) -> None:
    import errno
    import sys

    process = _in(kernel, sys.executable, "-c", SETTLES, str(kernel))
    said, _ = process.communicate(timeout=60)
    assert said.decode().split() == ["refused", str(errno.EBUSY), "daemon", "0"]


def test_on_a_real_tree_a_run_is_in_its_group_and_goes_with_all_that_it_started(kernel: Path) -> None:
    group = Group(kernel, "run")
    group.create(HUGE)
    script = "setsid sleep 1000 & echo $!; exec sleep 1000"
    process = subprocess.Popen([*group.entering(), "sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert {int(pid) for pid in (group.path / "cgroup.procs").read_text().split()} == {process.pid, child}
    assert not group.ran_out(), "a tree without the controller counts nothing"
    (group.path / "made by the run").mkdir()
    group.remove()
    assert not group.path.exists()
    assert process.wait(10) == -9
    process.stdout.close()
    group.remove()


def test_on_a_real_tree_controllers_that_were_taken_back_are_handed_on_again_to_a_run_that_goes_on(
    kernel: Path,
) -> None:
    group = Group(kernel, "run")
    group.create(HUGE)
    with subprocess.Popen([*group.entering(), "sleep", "1000"]) as process:
        while str(process.pid) not in (group.path / "cgroup.procs").read_text():
            pass
        (kernel / "cgroup.subtree_control").write_text("-hugetlb")  # as `unit.TAKE_BACK` does
        assert not (group.path / "hugetlb.2MB.max").exists()
        group.renew(HUGE)
        assert (group.path / "hugetlb.2MB.max").read_text() == "0\n"
        group.remove()
