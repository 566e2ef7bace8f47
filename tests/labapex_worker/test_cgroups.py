"""Groups on a folder that is shaped like the kernel's tree. What only a kernel does, the limits themselves, is not shown here."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from labapex_worker import cgroups
from labapex_worker.cgroups import Group


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The group of a service that delegates, with the daemon in a part of it."""
    unit = tmp_path / "system.slice" / "labapex-worker.service"
    (unit / "daemon").mkdir(parents=True)
    (unit / "daemon" / "cgroup.kill").touch()
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
        "12:memory:/system.slice\n11:pids:/system.slice\n",  # version 1
        "",
    ],
)
def test_elsewhere_no_group_is_made(unit: Path, tmp_path: Path, own: str) -> None:
    (tmp_path / "own").write_text(own)
    assert cgroups.delegated(tmp_path / "own", tmp_path) is None
    assert cgroups.delegated(tmp_path / "not there", tmp_path) is None


@pytest.mark.parametrize("lacking", ["cgroup.controllers", "cgroup.subtree_control", "daemon/cgroup.kill"])
def test_a_tree_without_what_is_needed_is_as_good_as_none(unit: Path, tmp_path: Path, lacking: str) -> None:
    (unit / lacking).unlink()
    assert cgroups.delegated(tmp_path / "own", tmp_path) is None


def test_controllers_that_were_not_delegated_limit_nothing(unit: Path, tmp_path: Path) -> None:
    (unit / "cgroup.controllers").write_text("cpu pids\n")
    assert cgroups.delegated(tmp_path / "own", tmp_path) is None


def test_a_group_is_made_beside_the_daemon_with_its_limits(unit: Path) -> None:
    group = Group(unit, "run")
    group.create(memory=1 << 30, processes=100)
    assert (unit / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert {file.name: file.read_text() for file in group.path.iterdir()} == {
        "memory.max": str(1 << 30), "pids.max": "100",
    }  # fmt: skip
    group.create(memory=1 << 29, processes=None)  # again, after a daemon that was killed
    assert (group.path / "pids.max").read_text() == "max"


def test_a_program_goes_into_its_group_before_it_becomes_itself(unit: Path) -> None:
    group = Group(unit, "run")
    group.create(memory=1 << 30, processes=100)
    said = subprocess.run(
        [*group.entering(), "sh", "-c", "echo $$ $1", "-", "x y"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{(group.path / 'cgroup.procs').read_text().strip()} x y\n"


def test_a_group_is_deleted_when_what_is_in_it_was_killed(unit: Path) -> None:
    group = Group(unit, "run")
    group.create(memory=1 << 30, processes=100)
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
