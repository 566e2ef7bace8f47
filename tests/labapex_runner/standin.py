"""Supervises one job, `standin.py JOB FOLDER SOCKET`, with an engine of a few lines in place of torch."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from labapex.proof.sink import Sink
from labapex.protocol.contract import Contract, Environment
from labapex_runner import supervisor


def environment(threads: int) -> Environment:
    return Environment(python="3.11", torch="none", device="cpu: stand-in", capability="none", threads=threads)


def train(*, contract: Contract, folder: Path, sink: Sink) -> None:
    """Run the script with a function `record(loss)` in reach."""
    steps = iter(range(1_000_000))
    source = (folder / "work" / contract.script).read_text()
    names = {"record": lambda loss: sink.iteration(next(steps), loss, time.time()), "sink": sink}
    exec(compile(source, contract.script, "exec"), names)


def no_engine() -> None:
    raise ModuleNotFoundError("No module named 'torch'")


if __name__ == "__main__":
    job, folder, agent, *flags = sys.argv[1:]
    load = no_engine if flags else lambda: (environment, train)
    events = os.environ.pop("EVENTS", None)
    sys.exit(
        supervisor.supervise(  # type: ignore[arg-type]
            Path(job), Path(folder), Path(agent), load, memory_events=Path(events) if events else None
        )
    )
