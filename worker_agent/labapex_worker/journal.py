"""How a daemon knows what became of a program that an earlier daemon started.

A shell stands between daemon and program. It writes its pid, waits for the program, writes the exit code, and holds a
lock on `lock` as long as it lives: a lock cannot be mistaken for another process, as a pid can, and ends with its
holder whatever kills it. What cannot be read of what it wrote, because the disk was full or the power failed, counts as
not written. The first `OUTPUT_BYTES` of what the program itself prints (the script's output goes encrypted to the
platform) lie in `output`. All of it stands where the program cannot reach it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labapex import sandbox

OUTPUT_BYTES = 64 << 10

_KEEPER = f"""
umask 077
printf %s "$$" >"$0/pid.part" && mv "$0/pid.part" "$0/pid" || exit 125
{{
    "$@" </dev/null
    printf %s "$?" >"$0/exit.part"
}} 2>&1 | {{ head -c {OUTPUT_BYTES}; cat >/dev/null; }} >"$0/output"
mv "$0/exit.part" "$0/exit"
"""  # the last: who sees how it ended can read what it said


@dataclass(frozen=True)
class NeverStarted:
    pass


@dataclass(frozen=True)
class Alive:
    """`pid` leads the program's process group; None in the first moments."""

    pid: int | None


@dataclass(frozen=True)
class Ended:
    """`code` as a shell tells it (128 + n: killed by signal n); None: it was killed together with its shell."""

    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return "it was killed, the host was restarted, or its disk is full"
        if self.code > 128:
            return f"it was ended by signal {self.code - 128}"
        return f"exit code {self.code}"


def start(
    folder: Path, argv: Sequence[str], confinement: sandbox.Confinement, *, entering: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a program that outlives the daemon, with its journal in `folder`. Raises `SandboxUnavailable`.

    `entering`: the beginning of a command line that goes on within a control group."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return sandbox.popen(
            argv,
            confinement,
            wrapper=(*entering, "/bin/sh", "-c", _KEEPER, str(folder)),
            stdin=lock,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def look(folder: Path) -> NeverStarted | Alive | Ended:
    """What became of the program whose journal is in `folder`."""
    if (ended := _ended(folder)) is not None:
        return ended
    if _locked(folder / "lock"):
        return Alive(_number(folder / "pid"))
    if (ended := _ended(folder)) is not None:  # it ended between the two looks
        return ended
    return Ended(None) if (folder / "pid").exists() else NeverStarted()


def kill(folder: Path) -> None:
    """Kill the program and all that it started; nothing happens where none runs."""
    while _locked(folder / "lock"):
        if (pid := _number(folder / "pid")) is not None:
            sandbox.kill_group(pid)
        else:
            time.sleep(0.01)  # the keeper has just been started and is about to write its pid


def how(folder: Path, ended: Ended) -> str:
    """How the program whose journal is in `folder` ended, with its last words where it failed."""
    words = last_words(folder)
    return f"{ended}: {words}" if words and ended.code != 0 else str(ended)


def last_words(folder: Path) -> str:
    """The last line that the program itself printed, made safe for a log."""
    try:
        with (folder / "output").open("rb") as file:
            lines = file.read(OUTPUT_BYTES).decode(errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:500] if lines else ""


def _ended(folder: Path) -> Ended | None:
    code = _number(folder / "exit")
    return None if code is None else Ended(code)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
