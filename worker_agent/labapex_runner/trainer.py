"""The process in which the client's code runs. It was forked before any key existed, and it never gets one.

Before any foreign code runs it gives up what would let that code get at the supervisor: see `labapex.landlock`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from labapex import durable, landlock
from labapex.errors import TrainingFailed
from labapex.proof.recording import FILES, Log
from labapex.proof.sink import Sink
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf
from labapex_runner import host
from labapex_runner.events import MAX_TRACEBACK, Done, EventWriter, Failed, Ready

GO = b"\x01"


class Train(Protocol):
    def __call__(self, *, contract: Contract, folder: Path, sink: Sink) -> None: ...


class Both(Log):
    """Each record goes into the log on this host, by which states can be made anew, and to the supervisor."""

    def __init__(self, folder: Path, writer: Sink) -> None:
        super().__init__(folder)
        self._writer = writer

    def iteration(self, step: int, loss: float, at: float) -> None:
        super().iteration(step, loss, at)
        self._writer.iteration(step, loss, at)

    def leaf(self, leaf: Leaf) -> None:
        super().leaf(leaf)
        self._writer.leaf(leaf)

    def scalars(self, values: Mapping[str, float]) -> None:
        self._writer.scalars(values)


def engine() -> tuple[Callable[[int], Environment], Train]:
    """The real engine, imported here and nowhere else because it brings torch along."""
    from labapex.proof.engine import environment, train

    return environment, train


def run(
    *,
    contract: Contract,
    folder: Path,
    events: int,
    control: int,
    load: Callable[[], tuple[Callable[[int], Environment], Train]] = engine,
) -> int:
    """Report what this host is, wait for `GO` on `control`, train. Returns the exit status.

    `events` and `control` are this end's descriptors of the two pipes; `folder` holds `work/` and `states/`."""
    writer = EventWriter(events)
    try:
        host.prepare(contract.threads, folder)
        own = [folder / name for name in ("work", "states", "tmp")]
        for place in own:
            place.mkdir(mode=0o700, exist_ok=True)
        sink = Both(folder, writer) if contract.keep_every > 1 else writer
        if (lacking := landlock.restrict(own)) is not None:
            print(f"[labapex] {lacking}", file=sys.stderr)
        environment, train = load()
        writer.send(Ready(environment=environment(contract.threads)))
        if os.read(control, 1) != GO:
            return 1  # the supervisor gave up; it says why
        os.close(control)
        os.chdir(folder / "work")
        train(contract=contract, folder=folder, sink=sink)
        left = [folder / name for name in FILES] if contract.keep_every > 1 else []
        durable.sync_all(
            [*left, *(folder / "states").iterdir()]
        )  # asked for once the log is complete, and never before
    except TrainingFailed as error:
        writer.send(Failed(reason=_clip(str(error))))
        return 1
    except BaseException:  # noqa: BLE001  (whatever a script raises ends here, reported)
        writer.send(Failed(reason=_clip(traceback.format_exc())))
        return 1
    sys.stdout.flush()
    sys.stderr.flush()
    writer.send(Done())
    return 0


def _clip(text: str) -> str:
    """The end of a traceback says what went wrong."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= MAX_TRACEBACK else "[..]\n" + text[-(MAX_TRACEBACK - 5) :]
