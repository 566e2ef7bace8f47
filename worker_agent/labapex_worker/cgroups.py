"""Control groups of version 2, where a host delegates them to the daemon: one for each run, by which the kernel itself limits it.

A group that has processes may hand no controllers on. So the daemon's own is a part, named `daemon`, of what was delegated, and
the runs' are beside it. systemd makes that part since version 254 (`DelegateSubgroup=`); where it does not, the daemon moves
into one itself (`settle`), and the unit takes the controllers back when the service ends (`unit.TAKE_BACK`), as systemd could not
start it again otherwise: `renew` then gives the runs that went on their limits again.

Elsewhere there is no group, and `labapex.watch` alone adds up what a run takes. It stands by in any case: a group knows no disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from labapex import watch

OWN = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")
SUBGROUP = "daemon"
CONTROLLERS = ("memory", "pids")
GONE_SECONDS = 10.0

_ENTER = 'echo "$$" >"$0/cgroup.procs"; exec "$@"'  # without its group a run is watched all the same


def settle(own: Path = OWN, root: Path = ROOT) -> None:
    """Move this process into a part of what was delegated to it, where systemd has not. Raises `OSError`.

    Only out of a group that is its own alone, as a service's is, and that it may write: not of a terminal's, and root's word is
    not enough, as root may write all of them."""
    mine = _mine(own, root)
    if mine is None or mine.name == SUBGROUP or not (os.geteuid() and _may_divide(mine)):
        return
    if (mine / "cgroup.procs").read_text().split() == [str(os.getpid())]:
        move_into_part(mine)


def move_into_part(group: Path) -> None:
    """Move this process from a group into the daemon's part of it. Raises `OSError`."""
    (group / SUBGROUP).mkdir(exist_ok=True)
    (group / SUBGROUP / "cgroup.procs").write_text(str(os.getpid()))


def delegated(own: Path = OWN, root: Path = ROOT) -> Path | None:
    """The group below which the daemon may make others with limits of their own; None where it has none.

    `own` is where a process reads its group, `root` where the tree is mounted."""
    mine = _mine(own, root)
    if mine is None or mine.name != SUBGROUP:
        return None
    try:
        controllers = (mine.parent / "cgroup.controllers").read_text().split()
    except OSError:
        return None
    able = set(CONTROLLERS) <= set(controllers) and (mine / "cgroup.kill").exists()  # since Linux 5.14
    return mine.parent if able and _may_divide(mine.parent) else None


def _mine(own: Path, root: Path) -> Path | None:
    """The group of version 2 that a process is in; None where there is none, or it is the root of all."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "").strip("/")
    return root / path if path else None


def _may_divide(group: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (group, group / "cgroup.procs", group / "cgroup.subtree_control"))


def limits(*, memory: int, processes: int | None) -> dict[str, str]:
    """The files of a group and what they say where it is to take so many bytes, none of them swapped out, and processes with
    their threads. Where memory runs out the kernel ends the largest process, as a rule the trainer: its supervisor says why."""
    return {
        "memory.max": str(memory),
        "memory.swap.max": "0",
        "pids.max": "max" if processes is None else str(processes),
    }


class Group:
    """One run's group below `parent`, which was `delegated`."""

    def __init__(self, parent: Path, name: str) -> None:
        self._parent, self.path = parent, parent / name

    def create(self, limits: Mapping[str, str]) -> None:
        """With these limits, by the names of their files; once more on the same group it sets them anew. Raises `OSError`."""
        controllers = sorted({name.partition(".")[0] for name in limits})
        (self._parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        self.path.mkdir(exist_ok=True)
        for name, value in limits.items():
            if name != "memory.swap.max" or (self.path / name).exists():  # a kernel without swap has none
                (self.path / name).write_text(value)

    def renew(self, limits: Mapping[str, str]) -> None:
        """`create` for a run that goes on. Nothing happens where it is in no group. Raises `OSError`."""
        if self.path.exists():
            self.create(limits)

    def entering(self) -> tuple[str, ...]:
        """The beginning of a command line that goes on within the group."""
        return ("/bin/sh", "-c", _ENTER, str(self.path))

    @property
    def events(self) -> Path:
        """Where the kernel counts what memory ran out of."""
        return self.path / "memory.events"

    def ran_out(self) -> bool:
        """Whether the kernel ended something in it because its memory had run out."""
        return watch.ran_out(self.events)

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
