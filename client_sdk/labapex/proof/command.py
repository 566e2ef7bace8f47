"""The process in which a script is recorded, replayed or tried for `labapex record`, `verify`, `replay` and `check`: it may
import torch.

    python -P -m labapex.proof.command record|replay|preflight FOLDER

reads FOLDER/request.json (`RecordRequest`, `ReplayRequest` or `PreflightRequest`) and writes FOLDER/report.json. What decides
bits must be in the environment before torch is imported: where it is not, the process starts itself anew with it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from labapex.errors import LabApexError, MalformedInput, TrainingFailed, UsageError
from labapex.proof import recording
from labapex.proof.confined import TERMS, RecordReport, RecordRequest
from labapex.proof.determinism import pin
from labapex.proof.folder import check_bounds, opened
from labapex.protocol.canonical import M, Message, parse
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import MAX_REPORT, PreflightReport, PreflightRequest, ReplayRequest

if TYPE_CHECKING:
    from torch.optim.optimizer import Optimizer

    from labapex.proof.loops import Loop
    from labapex.proof.runtime import Engine

MAX_REQUEST = 64 << 20
_TELL_SECONDS = 1.0
_monotonic = time.monotonic  # the plain clock: the engine marks the script's


def main(arguments: list[str]) -> int:
    """The exit status: 0 wherever a report was written, whatever it says."""
    try:
        match arguments:
            case ["record", folder]:
                return _record(Path(folder).absolute(), arguments)
            case ["replay", folder]:
                return _replay(Path(folder).absolute(), arguments)
            case ["preflight", folder]:
                return _try(Path(folder).absolute(), arguments)
        raise UsageError("usage: python -P -m labapex.proof.command record|replay|preflight FOLDER")
    except LabApexError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _replay(folder: Path, arguments: list[str]) -> int:
    request = _request(folder, ReplayRequest)
    _pinned(request.contract.threads, arguments)
    from labapex.proof import engine

    return _answer(folder, engine.replay(request=request, folder=folder))


def _try(folder: Path, arguments: list[str]) -> int:
    request = _request(folder, PreflightRequest)
    _pinned(request.threads, arguments)
    from labapex.proof import engine

    return _answer(folder, engine.preflight(request=request, folder=folder))


def _record(folder: Path, arguments: list[str]) -> int:
    request = _request(folder, RecordRequest)
    _pinned(request.threads, arguments)
    from labapex.proof import engine

    try:
        terms = _terms(folder) or _fixed(request, folder)
        assert terms.contract is not None
        here = engine.environment_elsewhere(request.threads, folder)
        if terms.environment != here:
            raise TrainingFailed("the recording began on a host of another class; go on there, or record anew")
        after = recording.resumable(folder, terms.contract)
        if after:
            _tell(f"going on from iteration {after[-1].step}")
        log = _Log(folder, terms.contract, after)
        engine.train(contract=terms.contract, folder=folder, sink=log, after=after[-1] if after else None)
        log.close()
    except (TrainingFailed, MalformedInput) as error:
        return _answer(folder, RecordReport(problem=str(error)[-20_000:]))
    return _answer(folder, terms)


def _terms(folder: Path) -> RecordReport | None:
    """Those of a recording that was interrupted; None where there is none."""
    if not (folder / TERMS).exists():
        return None
    with opened(folder, TERMS) as file:
        return parse(RecordReport, file.read(MAX_REPORT + 1), limit=MAX_REPORT)


def _fixed(request: RecordRequest, folder: Path) -> RecordReport:
    """The terms of a new recording, kept in its folder. Raises `TrainingFailed`."""
    from labapex.proof import engine

    found = engine.preflight(request=_preflight(request), folder=folder)
    terms = RecordReport(contract=_contract(request, found, folder), environment=found.environment)
    for state in (folder / "states").iterdir():  # the preflight's
        state.unlink()
    _write(folder / TERMS, terms)
    return terms


def _preflight(request: RecordRequest) -> PreflightRequest:
    return PreflightRequest(
        script=request.script,
        args=request.args,
        epochs=request.epochs or 1,
        iterations_per_epoch=request.iterations_per_epoch,
        checkpoint_every=request.checkpoint_every,
        threads=request.threads,
        seed=request.seed,
    )


def _contract(request: RecordRequest, found: PreflightReport, folder: Path) -> Contract:
    """The run's terms. Nobody ordered it, so job and lease are the nil UUID. Raises `TrainingFailed`."""
    if found.problem is not None or found.facts is None:
        raise TrainingFailed(found.problem or "no training loop was found")
    contract = Contract(
        job=UUID(int=0),
        lease=UUID(int=0),
        seed=request.seed,
        code=request.code,
        data=request.data,
        script=request.script,
        args=request.args,
        epochs=request.epochs or 1,
        checkpoint_every=request.checkpoint_every,
        keep_every=request.keep_every,
        threads=request.threads,
        facts=found.facts,
    )
    if request.epochs is None:
        contract = contract.model_copy(update={"epochs": _count(contract, folder)})
    check_bounds(contract)
    return contract


def _count(contract: Contract, folder: Path) -> int:
    """How many epochs the script makes when nobody stops it: found out by running it once."""
    from labapex.proof.isolate import fresh_work, isolated
    from labapex.proof.runtime import Engine

    _tell("counting the script's iterations by a first run; --epochs saves it")
    work = fresh_work(folder, "count")

    def run() -> dict[str, Any]:
        counter = _Counter()
        Engine.under(contract, work, counter).run(contract.threads)
        return {"iterations": counter.iterations}

    done = int(isolated(run, folder / "console.log", writes=(work.parent,))["iterations"])
    shutil.rmtree(work.parent)
    epochs, rest = divmod(done, contract.facts.iterations_per_epoch)
    if rest or not epochs:
        raise TrainingFailed(
            f"the script makes {done} iterations, which are no whole number of epochs of "
            f"{contract.facts.iterations_per_epoch}: say what counts with --epochs and --iterations-per-epoch"
        )
    return epochs


class _Counter:
    """A conductor that only counts."""

    def __init__(self) -> None:
        self.iterations = 0

    def search(self, engine: Engine, loop: Loop) -> None:
        raise AssertionError("the loop is known from the preflight")

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        pass

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        self.iterations = step + 1

    def forward(self, engine: Engine) -> None:
        pass

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        pass


class _Log(recording.Log):
    """A log that tells how far it is."""

    def __init__(self, folder: Path, contract: Contract, after: Sequence[Leaf]) -> None:
        super().__init__(folder, after)
        self._total = contract.iterations
        self._told = -_TELL_SECONDS

    def iteration(self, step: int, loss: float, at: float) -> None:
        super().iteration(step, loss, at)
        now = _monotonic()
        if now - self._told >= _TELL_SECONDS or step + 1 == self._total:
            self._told = now
            _tell(f"iteration {step + 1} of {self._total}, loss {loss:.4g}")


def _tell(text: str) -> None:
    os.write(2, f"{text}\n".encode())  # a script may have replaced sys.stderr


def _pinned(threads: int, arguments: list[str]) -> None:
    """Return in a process whose environment is pinned; else become one."""
    if "torch" in sys.modules:
        raise UsageError("torch was imported before its environment was pinned")
    wanted = pin(threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        line = [sys.executable, "-P", "-m", "labapex.proof.command", *arguments]
        os.execve(sys.executable, line, {**os.environ, **wanted})  # noqa: S606 - this very program


def _request(folder: Path, model: type[M]) -> M:
    with (folder / "request.json").open("rb") as file:
        return parse(model, file.read(MAX_REQUEST + 1), limit=MAX_REQUEST)


def _answer(folder: Path, report: Message) -> int:
    _write(folder / "report.json", report)
    return 0


def _write(path: Path, message: Message) -> None:
    """What is there is whole."""
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(message.model_dump_json())
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
