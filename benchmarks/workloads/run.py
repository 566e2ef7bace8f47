"""Measured runs: a process that imports torch once and forks for each run, so that no run finds what another left.

Reads lines of JSON {"mode": "bare" | "record" | "replay", "folder": .., "request": ..} and answers each with one. CPU seconds are
those of the whole forked process, background threads included, from the first optimizer step to the last: n turns with n leaves
(or n / k), without imports and the first step's preparations. What decides bits must be in the environment.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from labapex.proof import engine
from labapex.proof.isolate import isolated
from labapex.proof.record import Recorder
from labapex.proof.runtime import Engine
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import ReplayRequest

_process, _thread = time.process_time, time.thread_time  # the plain clocks: the engine marks the script's


class Notes:
    """A sink that keeps the leaves."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []

    def iteration(self, step: int, loss: float, at: float) -> None:
        pass

    def leaf(self, leaf: Leaf) -> None:
        self.leaves.append(leaf)


def stepping() -> list[float]:
    """The process's CPU seconds after each optimizer step from now on."""
    marks: list[float] = []

    def mark(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        marks.append(_process())

    register_optimizer_step_post_hook(mark)
    return marks


def watched(owner: Any, name: str) -> list[float]:
    """CPU seconds of each call of a function or method from now on, in the thread that makes it."""
    plain: Callable[..., Any] = getattr(owner, name)
    spent: list[float] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        began = _thread()
        try:
            return plain(*args, **kwargs)
        finally:
            spent.append(_thread() - began)

    setattr(owner, name, call)
    return spent


def bare(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    os.chdir(folder / "work")
    torch.set_num_threads(1)
    sys.argv = ["train.py", *request["args"]]
    marks, saves = stepping(), watched(torch, "save")
    runpy.run_path(str(folder / "work" / "train.py"), run_name="__main__")
    save = statistics.median(saves) if saves else 0.0
    return {"seconds": marks[-1] - marks[0], "steps": len(marks) - 1, "save_seconds": save}


def record(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    contract = Contract.model_validate(request)
    marks, captures, commits = stepping(), watched(Engine, "capture"), watched(Recorder, "_commit")
    notes = Notes()
    engine.train(contract=contract, folder=folder, sink=notes)
    later = (
        slice(1, None) if len(captures) > 2 else slice(None)
    )  # the first finds out what is there, and has half a state
    return {
        "seconds": marks[-1] - marks[0],
        "steps": len(marks) - 1,
        "leaf_seconds": statistics.median(captures[later]) + statistics.median(commits[later]),
        "state_bytes": notes.leaves[-1].size,
        "digests": [leaf.state for leaf in notes.leaves],
    }


def replay(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report, and the CPU seconds of the processes that the engine starts for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = engine.replay(request=ReplayRequest.model_validate(request), folder=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": spent, "report": report.model_dump(mode="json")}


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        request, folder = asked["request"], Path(asked["folder"])
        if asked["mode"] == "replay":
            answer = replay(request, folder)  # forks by itself
        else:
            work = {"bare": bare, "record": record}[asked["mode"]]
            answer = isolated(lambda: work(request, folder), folder / "console.log")  # noqa: B023
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
