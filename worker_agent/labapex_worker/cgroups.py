"""Control groups of version 2, where a host delegates them to the daemon: one for each run, by which the kernel itself limits it.

The daemon makes groups beside its own, never below: a group that has processes may hand no controllers on. So its own has to
be a part, named `daemon`, of what was delegated, as systemd makes it (254 and later) where the unit says

    Delegate=yes
    DelegateSubgroup=daemon
    ProtectControlGroups=no

Elsewhere there is no group, and `labapex.watch` alone adds up what a run takes. It stands by in any case: a group knows no disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OWN = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")
SUBGROUP = "daemon"
CONTROLLERS = ("memory", "pids")
GONE_SECONDS = 10.0

_ENTER = 'echo "$$" >"$0/cgroup.procs"; exec "$@"'  # without its group a run is watched all the same


def delegated(own: Path = OWN, root: Path = ROOT) -> Path | None:
    """The group below which the daemon may make others with limits of their own; None where it has none.

    `own` is where a process reads its group, `root` where the tree is mounted."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
    mine = root / path.lstrip("/")
    if mine.name != SUBGROUP:
        return None
    parent = mine.parent
    try:
        controllers = (parent / "cgroup.controllers").read_text().split()
    except OSError:
        return None
    writable = all(os.access(path, os.W_OK) for path in (parent, parent / "cgroup.subtree_control"))
    able = set(CONTROLLERS) <= set(controllers) and (mine / "cgroup.kill").exists()  # since Linux 5.14
    return parent if able and writable else None


class Group:
    """One run's group below `parent`, which was `delegated`."""

    def __init__(self, parent: Path, name: str) -> None:
        self._parent, self.path = parent, parent / name

    def create(self, *, memory: int, processes: int | None) -> None:
        """With limits in bytes, and in processes with their threads. Raises `OSError`.

        Where memory runs out the kernel ends the largest process, the trainer: its supervisor says so."""
        (self._parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
        self.path.mkdir(exist_ok=True)
        (self.path / "memory.max").write_text(str(memory))
        (self.path / "pids.max").write_text("max" if processes is None else str(processes))

    def entering(self) -> tuple[str, ...]:
        """The beginning of a command line that goes on within the group."""
        return ("/bin/sh", "-c", _ENTER, str(self.path))

    def remove(self) -> None:
        """Kill what is left in it, and delete it; nothing happens where there is none. Raises `OSError`."""
        with suppress(FileNotFoundError):
            (self.path / "cgroup.kill").write_text("1")
        give_up = time.monotonic() + GONE_SECONDS
        while self.path.exists():
            try:
                for group in (*self._below(), self.path):
                    group.rmdir()
            except OSError:  # what was killed is not gone yet
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def _below(self) -> Iterator[Path]:
        """Groups that the run made itself, the deepest first."""
        found = [Path(folder) for folder, _, _ in os.walk(self.path)]
        return reversed(found[1:])


def of_run(name: str) -> Group | None:
    """The group of a run on this host; None where none can be made."""
    parent = delegated()
    return None if parent is None else Group(parent, name)
