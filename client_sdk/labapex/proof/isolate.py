"""Runs a function that executes a client's script in a forked child, and brings back the JSON that it returns.

The engine patches its whole process and a script may do anything to it, so each run gets a process of its own. The parent has
imported torch once but never computed with it: forking is safe only before torch's thread pools exist.

What the parent reads and writes, requests and reports above all, is out of the child's reach where the kernel has Landlock.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from labapex import landlock
from labapex.errors import LabApexError, TrainingFailed

MAX_RESULT = 64 << 20


def isolated(function: Callable[[], dict[str, Any]], console: Path, *, writes: Sequence[Path]) -> dict[str, Any]:
    """Call `function` in a child whose output is appended to the file `console`. Returns what it returned.

    The child can write in the folders `writes`, which must exist, and in those for temporary files.

    Raises `TrainingFailed` with the message of any error, or with the cause of the child's death.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Not a pipe: the script's own children would inherit its end, and the parent would wait for them too.
    with open(os.memfd_create("result"), "w+b") as answer:  # noqa: PTH123 - a descriptor, not a path
        child = os.fork()
        if child == 0:
            _work(function, console, answer.fileno(), writes)
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        data = answer.read(MAX_RESULT + 1)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise TrainingFailed(f"the script's process was ended by {name}; SIGKILL usually means that memory ran out")
    if len(data) > MAX_RESULT or not data:
        raise TrainingFailed(f"the script's process ended with code {os.waitstatus_to_exitcode(status)} and no result")
    try:
        result: dict[str, Any] = json.loads(data)
    except (ValueError, RecursionError):  # the script found the descriptor and wrote to it
        raise TrainingFailed("the script's process left a result that cannot be read") from None
    if "problem" in result:
        raise TrainingFailed(str(result["problem"]))
    return result


def fresh_work(folder: Path, name: str) -> Path:
    """A copy of `folder`/work for one run, so that no run sees what another wrote; big files are linked, not copied."""
    work = folder / name / "work"
    shutil.rmtree(work.parent, ignore_errors=True)
    work.parent.mkdir(mode=0o700)
    shutil.copytree(folder / "work", work, copy_function=_copy)
    return work


def _copy(source: str, target: str) -> str:
    if Path(source).stat().st_size > 64 << 20:
        Path(target).hardlink_to(source)
        return target
    return str(shutil.copy2(source, target))


def _work(function: Callable[[], dict[str, Any]], console: Path, answer: int, writes: Sequence[Path]) -> None:
    """In the child: never returns."""
    code = 1
    try:
        log = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        landlock.restrict((*writes, Path(tempfile.gettempdir())))
        try:
            result = function()
        except LabApexError as error:
            result = {"problem": str(error)[-20_000:]}
        with open(answer, "wb") as file:
            file.write(json.dumps(result).encode())
        code = 0
    finally:
        for worker in multiprocessing.active_children():  # a loader's: nobody asks them for anything any more
            worker.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
