"""Stands between a confined program and its starter, and ends the program when all of it together takes too much.

The kernel limits single processes (`setrlimit`) and, in a sandbox's own user namespace, their number. What a program's processes
take together is added up here each second: memory that is theirs alone, what lies in their memory file systems, and the files
in their folder. A job may be past a limit for that second. Deleted files that are still open do not show in the folder; the
floor of free space is for them.

`sandbox.popen` starts it for every program; it lives as long as that and ends with its exit status, or with `EXCEEDED` and a line
on standard error that names the limit. Inside of the sandbox a job's supervisor looks by `exceeded` too, as its contract says.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from labapex import drop, sandbox

EXCEEDED = 124  # as of timeout(1)
FREE_BYTES = 256 << 20  # left for others on the disk of the folder
ENTRY_BYTES = 4096  # a file costs that much even if it is empty
PERIOD_SECONDS = 1.0
MAX_EVENTS = 4096  # bytes of a control group's memory.events
SHARE = 10  # looking takes at most one part in so many of the time
_PR_SET_PDEATHSIG = 1
_MEMORY_FOLDERS = ("tmp", "dev/shm")  # as seen from a process in the sandbox


class Excess(NamedTuple):
    """A limit that was passed: `memory`, `disk` or `processes`, and how far."""

    limit: str
    words: str

    def __str__(self) -> str:
        return f"{self.words} ({self.limit})"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="labapex.watch")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--private", type=Path, action="append", default=[])
    parser.add_argument("--memory", type=int)
    parser.add_argument("--disk", type=int)
    parser.add_argument("--processes", type=int)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    environment = drop.given_environment()
    score = Path("/proc/self/oom_score_adj")
    usual = score.read_text()
    score.write_text("1000")  # where memory runs out faster than it is added up, the kernel ends the program first
    # The descriptors were chosen by `popen`: pipes, and the filter of system calls.
    with subprocess.Popen(asked.command, env=environment, close_fds=False, start_new_session=True) as child:
        score.write_text(usual)
        reason = watch(child, asked.folder, asked.memory, asked.disk, asked.processes, asked.private)
        if reason is not None:
            sandbox.kill_tree(child)
            print(f"limit: {reason}", file=sys.stderr, flush=True)
            return EXCEEDED
        sandbox.kill_tree(child)  # it has ended; without a sandbox, what it started may not have
    if child.returncode < 0:
        if -child.returncode not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-child.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -child.returncode)
    return child.returncode


def watch(
    child: subprocess.Popen[bytes],
    folder: Path,
    memory: int | None,
    disk: int | None,
    processes: int | None,
    private: Sequence[Path] = (),
) -> Excess | None:
    """Wait for the program's end; None then, or what it took too much of. Sizes in bytes; `private` folders lie in memory."""
    descriptor = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pause = PERIOD_SECONDS
    try:
        while not poll.poll(1000 * pause):
            began = time.monotonic()
            reason = exceeded(child.pid, folder, memory, disk, processes, private)
            if reason is None and disk is not None:
                reason = crowded(folder)
            if reason is not None:
                return reason
            pause = max(PERIOD_SECONDS, SHARE * (time.monotonic() - began))
        return None
    finally:
        os.close(descriptor)


def exceeded(
    pid: int,
    folder: Path,
    memory: int | None,
    disk: int | None,
    processes: int | None,
    private: Sequence[Path] = (),
) -> Excess | None:
    """What a program, its descendants and its folder take too much of at this moment; None where it is nothing."""
    tree = [pid, *sandbox.descendants(pid)]
    if processes is not None and (threads := sum(map(_threads, tree))) >= processes:
        return Excess("processes", f"the job ran {threads} processes and threads; {processes} are its limit")
    if memory is not None and (used := memory_used(tree, memory, private)) > memory:
        return Excess("memory", f"the job used {size(used)} of memory; {size(memory)} are its limit")
    if disk is not None:
        try:
            used = disk_used(folder)
        except OSError as error:
            return Excess("disk", f"the job's files cannot be counted, as they must be: {error.strerror}")
        if used > disk:
            return Excess("disk", f"the job's files took {size(used)}; {size(disk)} are its limit")
    return None


def ran_out(events: Path) -> bool:
    """Whether a control group's own limit of memory was met, and the kernel ended a process of it, as its `memory.events` counts.

    Both, since `oom_kill` alone counts a host without memory as well. False where the file cannot be read."""
    try:
        with events.open("rb") as file:
            lines = file.read(MAX_EVENTS).decode("ascii", errors="replace").splitlines()
    except OSError:
        return False
    counts = dict(line.split(" ", 1) for line in lines if " " in line)
    return all(counts.get(name, "0").strip("0") != "" for name in ("oom", "oom_kill"))


def crowded(folder: Path) -> Excess | None:
    """Whether the disk on which a folder lies is nearly full, whoever filled it."""
    space = os.statvfs(folder)
    if (free := space.f_bavail * space.f_frsize) >= FREE_BYTES:
        return None
    return Excess(
        "disk", f"only {size(free)} are free on the disk of its folder; {size(FREE_BYTES)} are left to others"
    )


def memory_used(tree: list[int], enough: int, private: Sequence[Path] = ()) -> int:
    """Bytes of memory that go when these processes go.

    Resident pages count for each process first; where that is more than `enough`, what processes share since a fork is counted
    once, which takes longer to find out. Files in memory and pages mapped from them are mostly the same: the larger counts.

    What a process shares is closed to others of the same rights where it may not be debugged. Of such processes the largest
    counts alone: it is not too much whatever they share."""
    files = sum(_memory_files(tree, private).values())
    rough = _resident(tree, "RssAnon:") + max(files, _resident(tree, "RssShmem:"))
    if rough <= enough:
        return rough
    return _shared(tree, "Pss_Anon:", "RssAnon:") + max(files, _shared(tree, "Pss_Shmem:", "RssShmem:"))


def disk_used(folder: Path) -> int:
    """Bytes on disk of everything below a folder, following no link.

    Raises `OSError` where something cannot be looked at: too deep, or closed."""
    used, todo = 0, [os.fspath(folder)]
    while todo:
        for entry in _entries(todo.pop()):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            used += max(ENTRY_BYTES, 512 * status.st_blocks)
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
    return used


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except FileNotFoundError:
        return


def _memory_files(tree: list[int], private: Sequence[Path]) -> dict[tuple[int, int], int]:
    """Bytes of the processes' own memory file systems and nameless files in memory, by device and inode."""
    names = (*_MEMORY_FOLDERS, *(os.fspath(place).lstrip("/") for place in private))
    here, found = {Path("/", name).stat().st_dev for name in names if Path("/", name).exists()}, {}
    for pid in tree:
        for name in names:
            place = Path(f"/proc/{pid}/root", name)
            with suppress(OSError):  # it ended, or never was in a sandbox
                if (device := place.stat().st_dev) not in here:
                    space = os.statvfs(place)
                    found[device, 0] = (space.f_blocks - space.f_bfree) * space.f_frsize
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()).startswith("/memfd:"):
                        status = descriptor.stat()
                        found[status.st_dev, status.st_ino] = 512 * status.st_blocks
    return found


def _resident(tree: list[int], name: str) -> int:
    return sum(_field(pid, "status", name) or 0 for pid in tree)


def _shared(tree: list[int], part: str, whole: str) -> int:
    """Bytes of all processes, where what some of them share counts once; of the closed ones, the largest."""
    parts = {pid: _field(pid, "smaps_rollup", part) for pid in tree}
    closed = [_field(pid, "status", whole) or 0 for pid, found in parts.items() if found is None]
    return sum(found for found in parts.values() if found is not None) + max(closed, default=0)


def _field(pid: int, file: str, name: str) -> int | None:
    """Bytes, from the line `NAME  N kB` of a process's file; None where it is closed to us, 0 where the process has ended."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    except PermissionError:
        return None
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(name)), 0)


def _threads(pid: int) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return 0


def size(count: int) -> str:
    """Bytes as people say them."""
    return f"{count / (1 << 30):.4g} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
