"""The process in which the client's code runs. It was forked before any key existed, and it never gets one."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from labapex.errors import TrainingFailed
from labapex.proof.sink import Sink
from labapex.protocol.contract import Contract, Environment
from labapex_runner import host
from labapex_runner.events import MAX_TRACEBACK, Done, EventWriter, Failed, Ready

GO = b"\x01"


class Train(Protocol):
    def __call__(self, *, contract: Contract, folder: Path, sink: Sink) -> None: ...


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
        host.prepare(contract.threads)
        environment, train = load()
        (folder / "work").mkdir(mode=0o700, exist_ok=True)
        (folder / "states").mkdir(mode=0o700, exist_ok=True)
        writer.send(Ready(environment=environment(contract.threads)))
        if os.read(control, 1) != GO:
            return 1  # the supervisor gave up; it says why
        os.close(control)
        os.chdir(folder / "work")
        train(contract=contract, folder=folder, sink=writer)
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
