"""Measured runs: a process that imports torch once and forks for each run, so that no run finds what another left.

Reads lines of JSON {"mode": "host" | "bare" | "record" | "replay", "folder": .., "request": ..} and answers each with one. CPU
seconds are those of the whole forked process, background threads included, from the first optimizer step to the last: n turns
with n leaves (or n / k), without imports and the first step's preparations. Device seconds are the time between the same two
steps on the device's own clock, so that nothing waits for it on the way. What decides bits must be in the environment.
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

from labapex.errors import LabApexError
from labapex.proof import engine
from labapex.proof.isolate import isolated
from labapex.proof.record import Recorder
from labapex.proof.runtime import Engine
from labapex.proof.sink import Notes
from labapex.protocol.contract import Contract
from labapex.protocol.replay import ReplayRequest

_process, _thread, _now = time.process_time, time.thread_time, time.perf_counter  # plain: the engine marks the script's


class Steps:
    """When each optimizer step from now on is done: on the process's CPU clock, and on the device's."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.device: list[Any] = []
        register_optimizer_step_post_hook(self._mark)

    def _mark(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.cpu.append(_process())
        if torch.cuda.is_initialized():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.device.append(event)
        else:
            self.device.append(_now())

    def figures(self) -> dict[str, Any]:
        """`seconds` (CPU) and `device_seconds` over `steps` turns."""
        first, last = self.device[0], self.device[-1]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            elapsed = first.elapsed_time(last) / 1e3
        else:
            elapsed = last - first
        return {"seconds": self.cpu[-1] - self.cpu[0], "device_seconds": elapsed, "steps": len(self.cpu) - 1}


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


def host(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What this host is: its class, and what else may decide bits on a GPU."""
    return {
        "environment": engine.environment(threads=1).model_dump(mode="json"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
    }


def bare(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    os.chdir(folder / "work")
    torch.set_num_threads(1)
    if request["deterministic"]:
        torch.use_deterministic_algorithms(True, warn_only=True)
    sys.argv = ["train.py", *request["args"]]
    steps, saves = Steps(), watched(torch, "save")
    runpy.run_path(str(folder / "work" / "train.py"), run_name="__main__")
    return {**steps.figures(), "save_seconds": statistics.median(saves) if saves else 0.0}


def record(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    contract = Contract.model_validate(request)
    steps, captures, commits = Steps(), watched(Engine, "capture"), watched(Recorder, "_commit")
    notes = Notes()
    engine.train(contract=contract, folder=folder, sink=notes)
    later = (
        slice(1, None) if len(captures) > 2 else slice(None)
    )  # the first finds out what is there, and has half a state
    return {
        **steps.figures(),
        "leaf_seconds": statistics.median(captures[later]) + statistics.median(commits[later]),
        "state_bytes": notes.leaves[-1].size,
        "digests": [leaf.state for leaf in notes.leaves],
        "losses": notes.losses,
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
        work = {"host": host, "bare": bare, "record": record, "replay": replay}[asked["mode"]]
        try:
            answer = isolated(lambda: work(request, folder), folder / "console.log", writes=(folder,))  # noqa: B023
        except LabApexError as error:
            answer = {"problem": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
