"""Before money is held: does a script run, what are its iterations, and does a replay of it reproduce itself exactly."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from labapex.errors import LabApexError, TrainingFailed
from labapex.proof.discover import SAY_IT, Discovery
from labapex.proof.isolate import isolated
from labapex.proof.record import Recorder
from labapex.proof.replay import Item, Replayer, Segment
from labapex.proof.runtime import Engine, Finished
from labapex.proof.sink import Sink
from labapex.proof.state import State, first_difference
from labapex.protocol.contract import Contract, Environment, ScriptFacts
from labapex.protocol.records import Leaf
from labapex.protocol.replay import PreflightReport, PreflightRequest

_now = time.perf_counter  # the plain clock: the engine marks the script's
FIRST = 2  # segments at the start that are recorded and replayed
EDGES = 2  # epochs' ends that are tried too: a replay over the second finds what a fresh start of the first would hide
PATIENCE = 10.0  # seconds of recording after which no epoch's end is waited for any more


class Trial(Recorder):
    """Records the first segments and, where they are not far, those round the ends of the first epochs."""

    def __init__(self, contract: Contract, states: Path, sink: Sink) -> None:
        super().__init__(contract, states, sink)
        self.edges = edges(contract)
        self.kept = {*range(FIRST + 1), *(e + n for e in self.edges for n in (-1, 0, 1))}
        self.started = _now()
        self.whole = False  # all that was to be recorded is

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        super().boundary(engine, at_top=at_top)
        late = _now() - self.started > PATIENCE
        self.whole = self.index == len(self.due)
        if self.index > FIRST and (self.index > self.edges[-1] + 1 or self.whole or late):
            self.whole = True
            raise Finished

    def _commit(self, index: int, step: int, state: State, losses: bytes, batches: str) -> None:
        super()._commit(index, step, state, losses, batches)
        if index not in self.kept:
            (self.states / f"{index}.safetensors").unlink()


def edges(contract: Contract) -> list[int]:
    """The leaves at the ends of the first epochs."""
    per_epoch = contract.facts.iterations_per_epoch
    return [contract.leaf_steps().index(e * per_epoch) for e in range(1, min(EDGES, contract.epochs) + 1)]


class _Notes:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.leaves: list[Leaf] = []

    def iteration(self, step: int, loss: float, at: float) -> None:
        self.times.append(at)

    def leaf(self, leaf: Leaf) -> None:
        self.leaves.append(leaf)


def preflight(*, request: PreflightRequest, folder: Path, environment: Environment) -> PreflightReport:
    """Discover, record and replay the script in `folder`/work. Whatever is wrong with it stands in the report."""
    console = folder / "console.log"
    try:
        return _preflight(request, folder, console, environment)
    except LabApexError as error:
        return PreflightReport(problem=str(error)[-20_000:], console=_tail(console), environment=environment)


def _preflight(request: PreflightRequest, folder: Path, console: Path, environment: Environment) -> PreflightReport:
    (folder / "states").mkdir(exist_ok=True)
    found = isolated(lambda: _discover(request, _fresh(folder, "discover")), console)
    iterations = request.iterations_per_epoch or found["length"]
    if found["loop"] is None:
        raise TrainingFailed(
            "no optimizer step was seen. Lab Apex records scripts that step a torch.optim optimizer in a loop of their own. "
            f"{SAY_IT}"
        )
    if iterations is None:
        raise TrainingFailed(
            f"the loop at {found['loop']} has no DataLoader with a length that would tell the iterations of an epoch: "
            "declare them as iterations_per_epoch"
        )
    facts = ScriptFacts(
        loop=found["loop"],
        iterations_per_epoch=iterations,
        has_loader=found["length"] is not None and found["one_batch_each"] and iterations == found["length"],
        gradients_are_state=found["gradients"],
        parameters=found["parameters"],
        state_bytes=0,
    )
    contract = _contract(request, facts)
    record = isolated(lambda: _record(contract, _fresh(folder, "record"), folder / "states"), console)
    leaves = [Leaf.model_validate(leaf) for leaf in record["leaves"]]
    if not record["whole"]:
        raise TrainingFailed(
            f"the script ended after {len(record['times'])} iterations of {contract.iterations} (epochs x iterations per "
            "epoch). Make its own number of epochs follow the job's, for example with args: ['--epochs', '{epochs}']"
        )
    _reproduces(contract, folder, leaves, console)
    gaps = [b - a for a, b in zip(record["times"], record["times"][1:], strict=False)]
    return PreflightReport(
        console=_tail(console),
        facts=facts.model_copy(update={"state_bytes": leaves[-1].size}),
        environment=environment,
        initial_state=leaves[0].state,
        iteration_seconds=statistics.median(gaps) if gaps else 0.0,
        replay_max_error=0.0,
    )


def _discover(request: PreflightRequest, root: Path) -> dict[str, Any]:
    discovery = Discovery()
    engine = Engine(
        root=root,
        script=request.script,
        args=list(request.args),
        seed=request.seed,
        loop=None,
        gradients=False,
        conductor=discovery,
    )
    engine.run(request.threads)
    return {
        "loop": discovery.loop,
        "length": discovery.length,
        "one_batch_each": discovery.one_batch_each,
        "gradients": engine.gradients_survive,
        "parameters": discovery.parameters,
    }


def _contract(request: PreflightRequest, facts: ScriptFacts) -> Contract:
    """The terms of this preflight's own run: no lease, and the request's seed."""
    nobody = UUID(int=0)
    return Contract(
        job=nobody,
        lease=nobody,
        seed=request.seed,
        code="0" * 64,
        data="0" * 64,
        script=request.script,
        args=request.args,
        epochs=request.epochs,
        checkpoint_every=request.checkpoint_every,
        threads=request.threads,
        facts=facts,
    )


def _record(contract: Contract, root: Path, states: Path) -> dict[str, Any]:
    notes = _Notes()
    recorder = Trial(contract, states, notes)
    Engine.under(contract, root, recorder).run(contract.threads)
    recorder.drain()
    leaves = [leaf.model_dump(mode="json") for leaf in notes.leaves]
    return {"times": notes.times, "leaves": leaves, "whole": recorder.whole}


def _reproduces(contract: Contract, folder: Path, leaves: list[Leaf], console: Path) -> None:
    """Replay the recorded segments, the last one first, so that none is led to by the one before it.

    Raises `TrainingFailed` that names what differs."""
    edge = max([e for e in edges(contract) if e < len(leaves) - 1], default=0)
    tried = sorted({n for n in (0, 1, edge - 1, edge) if 0 <= n < len(leaves) - 1}, reverse=True)
    scratch = _fresh(folder, "replay").parent
    (scratch / "states").symlink_to(folder / "states")
    (scratch / "ends").mkdir()

    def run() -> dict[str, Any]:
        items: list[Item] = [Segment(n) for n in tried]
        replayer = Replayer(contract, scratch, items, keep=scratch / "ends")
        Engine.under(contract, scratch / "work", replayer).run(contract.threads)
        return replayer.result

    while tried:
        result = isolated(run, console)
        if result["initial"] != leaves[0].state:
            other = State.load(scratch / "initial.safetensors")
            name = first_difference(State.load(folder / "states" / "0.safetensors"), other)
            raise TrainingFailed(_irreproducible("its initial state", name))
        start, stop = leaves[tried[0]], leaves[tried[0] + 1]
        if not result["segments"]:
            raise TrainingFailed(_irreproducible(_span(start, stop), "the way to the training loop"))
        for segment in result["segments"]:
            start, stop = leaves[segment["leaf"]], leaves[segment["leaf"] + 1]
            if segment["state"] != stop.state:
                recorded = State.load(folder / "states" / f"{stop.index}.safetensors")
                name = first_difference(recorded, State.load(scratch / "ends" / f"{start.index}.safetensors"))
                raise TrainingFailed(_irreproducible(_span(start, stop), name))
        tried = tried[result["done"] :]


def _span(start: Leaf, stop: Leaf) -> str:
    return f"iterations {start.step} to {stop.step}"


def _irreproducible(where: str, name: str | None) -> str:
    return (
        f"the script does not reproduce itself: two runs of {where} under one seed differ in {name}. Usual causes: "
        "randomness from the operating system, values that depend on the clock, or updates that no optimizer makes"
    )


def _fresh(folder: Path, name: str) -> Path:
    """A copy of `work/` for one run, so that no run sees what another wrote; big files are linked, not copied."""
    work = folder / f"{name}" / "work"
    shutil.rmtree(work.parent, ignore_errors=True)
    work.parent.mkdir(mode=0o700)
    shutil.copytree(folder / "work", work, copy_function=_copy)
    return work


def _copy(source: str, target: str) -> str:
    if Path(source).stat().st_size > 64 << 20:
        Path(target).hardlink_to(source)
        return target
    return str(shutil.copy2(source, target))


def _tail(console: Path) -> str:
    if not console.exists():
        return ""
    with console.open("rb") as file:
        file.seek(max(0, console.stat().st_size - 100_000))
        return file.read().decode(errors="replace")
