"""The process in which a script is recorded or replayed for `labapex record`, `verify` and `replay`: it may import torch.

    python -P -m labapex.proof.command record|replay FOLDER

reads FOLDER/request.json (`RecordRequest` or `ReplayRequest`) and writes FOLDER/report.json. What decides bits must be in
the environment before torch is imported: where it is not, the process starts itself anew with it.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from labapex.errors import LabApexError, TrainingFailed, UsageError
from labapex.proof.confined import RecordReport, RecordRequest
from labapex.proof.determinism import pin
from labapex.proof.folder import check_bounds
from labapex.protocol.canonical import M, Message, canonical, parse
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import PreflightReport, PreflightRequest, ReplayRequest

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
        raise UsageError("usage: python -P -m labapex.proof.command record|replay FOLDER")
    except LabApexError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _replay(folder: Path, arguments: list[str]) -> int:
    request = _request(folder, ReplayRequest)
    _pinned(request.contract.threads, arguments)
    from labapex.proof import engine

    return _answer(folder, engine.replay(request=request, folder=folder))


def _record(folder: Path, arguments: list[str]) -> int:
    request = _request(folder, RecordRequest)
    _pinned(request.threads, arguments)
    from labapex.proof import engine

    found = engine.preflight(request=_preflight(request), folder=folder)
    try:
        contract = _contract(request, found, folder)
        for state in (folder / "states").iterdir():  # the preflight's
            state.unlink()
        log = _Log(folder, contract)
        engine.train(contract=contract, folder=folder, sink=log)
        log.close()
    except TrainingFailed as error:
        return _answer(folder, RecordReport(problem=str(error)[-20_000:]))
    return _answer(folder, RecordReport(contract=contract, environment=found.environment))


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
        threads=request.threads,
        facts=found.facts,
    )
    if request.epochs is None:
        contract = contract.model_copy(update={"epochs": _count(contract, folder)})
    check_bounds(contract)
    return contract


def _count(contract: Contract, folder: Path) -> int:
    """How many epochs the script makes when nobody stops it: found out by running it once."""
    from labapex.proof.isolate import isolated
    from labapex.proof.runtime import Engine

    _tell("counting the script's iterations by a first run; --epochs saves it")
    work = folder / "count" / "work"
    shutil.copytree(folder / "work", work)

    def run() -> dict[str, Any]:
        counter = _Counter()
        Engine.under(contract, work, counter).run(contract.threads)
        return {"iterations": counter.iterations}

    done = int(isolated(run, folder / "console.log")["iterations"])
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


class _Log:
    """A sink that writes each record as it comes: unbuffered, so that a script that forks never writes one twice."""

    def __init__(self, folder: Path, contract: Contract) -> None:
        names = ("leaves.jsonl", "losses.f64", "times.f64")
        self._files = [(folder / name).open("wb", buffering=0) for name in names]
        self._total = contract.iterations
        self._told = -_TELL_SECONDS

    def iteration(self, step: int, loss: float, at: float) -> None:
        self._files[1].write(struct.pack("<d", loss))
        self._files[2].write(struct.pack("<d", at))
        now = _monotonic()
        if now - self._told >= _TELL_SECONDS or step + 1 == self._total:
            self._told = now
            _tell(f"iteration {step + 1} of {self._total}, loss {loss:.4g}")

    def leaf(self, leaf: Leaf) -> None:
        self._files[0].write(canonical(leaf) + b"\n")

    def close(self) -> None:
        for file in self._files:
            file.close()


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
    draft = folder / "report.json.part"
    draft.write_text(report.model_dump_json())
    draft.replace(folder / "report.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
