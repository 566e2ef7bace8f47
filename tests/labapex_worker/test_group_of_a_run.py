"""A run that is started in a control group, on a folder that is shaped like the kernel's tree: what it gets, and what it sees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from tests.labapex.authority import Authority
from tests.labapex_worker import fake_executable

from labapex_worker import cgroups, journal, supervisor
from labapex_worker.cgroups import Group
from labapex_worker.config import Config, Home
from labapex_worker.supervisor import Folder

LOOK = """
cat "$LABAPEX_MEMORY_EVENTS" >"$LABAPEX_JOB_FOLDER/seen"
if echo >"$LABAPEX_MEMORY_EVENTS"; then echo written >>"$LABAPEX_JOB_FOLDER/seen"; fi
ls -d /sys/fs/cgroup/* >>"$LABAPEX_JOB_FOLDER/seen"
exit 7
"""
MIB = 1 << 20


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """The group of any run; the kernel's file is there when the folder is made."""
    group = Group(tmp_path / "unit", "run")
    group.path.mkdir(parents=True)
    group.events.write_text("oom 4\noom_kill 2\n")
    monkeypatch.setattr(cgroups, "of_run", lambda name: group)
    return group


def a_run(home: Home, tmp_path: Path, **plan: object) -> UUID:
    lease, look = uuid4(), tmp_path / "look.sh"
    look.write_text(LOOK)
    folder = Folder(home.lease(lease))
    folder.create()
    folder.executable.write_bytes(
        fake_executable.make(
            tmp_path,
            authority=Authority(),
            worker=uuid4(),
            lease=lease,
            job=uuid4(),
            plan=plan,
            start=("/bin/sh", look),
        )
    )
    folder.executable.chmod(0o755)
    return lease


def a_config(tmp_path: Path, **fields: object) -> Config:
    return Config.model_validate(
        {"platform": "https://x", "worker": uuid4(), "name": "x", "root": bytes(32), "site_packages": (),
         "read_only": (tmp_path / "look.sh",), **fields}
    )  # fmt: skip


def test_a_run_sees_what_the_kernel_counts_of_its_group_and_nothing_else_of_it(
    home: Home, tmp_path: Path, group: Group
) -> None:
    lease = a_run(home, tmp_path)
    process = supervisor.start(lease, home, a_config(tmp_path), threads=1)
    process.wait(60)
    folder = Folder(home.lease(lease))
    assert journal.look(folder.path) == journal.Ended(7), journal.last_words(folder.path)
    assert (folder.job / "seen").read_text() == "oom 4\noom_kill 2\n"
    assert (group.path / "cgroup.procs").read_text() != ""


@pytest.mark.parametrize(
    ("fields", "memory", "processes"),
    [
        ({}, 1 + 1 + 512 + 256, 64 + 16),  # its contract's, its files, and what runs it
        ({"private_bytes": 0}, 1 + 256, 64 + 16),  # its files lie on the disk
        ({"total_memory_bytes": 300 * MIB, "processes": 20}, 300 + 256, 20 + 16),  # no more than its owner allows
    ],
)
def test_its_group_has_the_limits_of_its_contract_and_gets_them_again_from_the_next_daemon(
    home: Home, tmp_path: Path, group: Group, fields: dict[str, object], memory: int, processes: int
) -> None:
    lease = a_run(home, tmp_path)
    supervisor.start(lease, home, a_config(tmp_path, **fields), threads=1).wait(60)
    limits = {"memory.max": str(memory * MIB), "memory.swap.max": "0", "pids.max": str(processes)}
    assert json.loads(Folder(home.lease(lease)).group.read_text()) == limits
    for name in ("memory.max", "pids.max"):
        assert (group.path / name).read_text() == limits[name]
        (group.path / name).write_text("max")
    supervisor.renew(lease, home)
    assert {name: (group.path / name).read_text() for name in ("memory.max", "pids.max")} == {
        name: limits[name] for name in ("memory.max", "pids.max")
    }


def test_a_run_that_was_started_without_a_group_goes_on_without_one(home: Home, group: Group) -> None:
    supervisor.renew(uuid4(), home)
    assert [path.name for path in group.path.iterdir()] == ["memory.events"]
