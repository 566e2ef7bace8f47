"""Before money is held: does a script run, what are its iterations, and does a replay of it reproduce itself exactly."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from labapex.errors import LabApexError, TrainingFailed
from labapex.proof import frameworks
from labapex.proof.discover import SAY_IT, Discovery
from labapex.proof.isolate import fresh_work, isolated
from labapex.proof.record import Recorder
from labapex.proof.replay import MADE, Item, Replayer, another_start
from labapex.proof.runs import Run
from labapex.proof.runtime import Engine, Finished
from labapex.proof.sink import Notes, Sink
from labapex.proof.starts import compare
from labapex.proof.state import State, first_difference
from labapex.protocol.contract import Contract, Environment, ScriptFacts
from labapex.protocol.records import Leaf
from labapex.protocol.replay import PreflightReport, PreflightRequest, StartReport

_now = time.perf_counter  # the plain clock: the engine marks the script's
FIRST = 2  # segments at the start that are recorded and replayed
EDGES = 2  # epochs' ends that are tried too: a replay over the second finds what a fresh start of the first would hide
PATIENCE = 10.0  # seconds after which no epoch's end is waited for any more, unless a library makes objects there


class Trial(Recorder):
    """Records the first segments and, where they are not far, those round the ends of the first epochs."""

    def __init__(self, contract: Contract, states: Path, sink: Sink) -> None:
        super().__init__(contract, states, sink)
        self.edges = edges(contract)
        self.patience = math.inf if frameworks.lazy(contract.facts.loop) else PATIENCE
        self.kept = frozenset({*range(FIRST + 1), *(e + n for e in self.edges for n in (-1, 0, 1))})
        self.started = _now()
        self.whole = False  # all that was to be recorded is

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        super().boundary(engine, at_top=at_top)
        late = _now() - self.started > self.patience
        self.whole = self.index == len(self.due)
        if self.index > FIRST and (self.index > self.edges[-1] + 1 or self.whole or late):
            self.whole = True
            raise Finished


def edges(contract: Contract) -> list[int]:
    """The leaves at the ends of the first epochs."""
    per_epoch = contract.facts.iterations_per_epoch
    return [contract.leaf_steps().index(e * per_epoch) for e in range(1, min(EDGES, contract.epochs) + 1)]


def preflight(*, request: PreflightRequest, folder: Path, environment: Environment) -> PreflightReport:
    """Discover, record and replay the script in `folder`/work. Whatever is wrong with it stands in the report."""
    console = folder / "console.log"
    try:
        return _preflight(request, folder, console, environment)
    except LabApexError as error:
        return PreflightReport(problem=str(error)[-20_000:], console=_tail(console), environment=environment)


def _preflight(request: PreflightRequest, folder: Path, console: Path, environment: Environment) -> PreflightReport:
    (folder / "states").mkdir(exist_ok=True)
    work = fresh_work(folder, "discover")
    found = isolated(lambda: _discover(request, work), console, writes=(work,))
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
    again, states = fresh_work(folder, "record"), folder / "states"
    record = isolated(lambda: _record(contract, again, states), console, writes=(again, states))
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
        facts=ScriptFacts.model_validate(
            {**facts.model_dump(), "state_bytes": leaves[-1].size, "layout": record["layout"]}
        ),
        environment=environment,
        initial_state=leaves[0].state,
        start=_start(contract, folder),
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
        parents=request.parents,
        args=request.args,
        epochs=request.epochs,
        checkpoint_every=request.checkpoint_every,
        threads=request.threads,
        facts=facts,
    )


def _record(contract: Contract, root: Path, states: Path) -> dict[str, Any]:
    notes = Notes()
    recorder = Trial(contract, states, notes)
    Engine.under(contract, root, recorder).run(contract.threads)
    recorder.drain()
    leaves = [leaf.model_dump(mode="json") for leaf in notes.leaves]
    layout = [stretch.model_dump() for stretch in State.load(states / "0.safetensors").layout()]
    return {"times": notes.times, "leaves": leaves, "whole": recorder.whole, "layout": layout}


def _reproduces(contract: Contract, folder: Path, leaves: list[Leaf], console: Path) -> None:
    """Replay the recorded segments, the last one first, so that none is led to by the one before it.

    Raises `TrainingFailed` that names what differs."""
    edge = max([e for e in edges(contract) if e < len(leaves) - 1], default=0)
    tried = sorted({n for n in (0, 1, edge - 1, edge) if 0 <= n < len(leaves) - 1}, reverse=True)
    scratch = fresh_work(folder, "replay").parent
    (scratch / "states").symlink_to(folder / "states")
    (scratch / "ends").mkdir()

    def run() -> dict[str, Any]:
        items: list[Item] = [Run(n, n + 1) for n in tried]
        replayer = Replayer(contract, scratch, items, keep={n + 1: _end(scratch, n + 1) for n in tried})
        Engine.under(contract, scratch / "work", replayer).run(contract.threads)
        return replayer.result

    while tried:
        result = isolated(run, console, writes=(scratch,))
        if result["initial"] != leaves[0].state:
            other = State.load(scratch / MADE / "initial.safetensors")
            name = first_difference(State.load(folder / "states" / "0.safetensors"), other)
            raise TrainingFailed(_irreproducible("its initial state", name))
        start, stop = leaves[tried[0]], leaves[tried[0] + 1]
        if not result["segments"]:
            raise TrainingFailed(_irreproducible(_span(start, stop), "the way to the training loop"))
        for segment in result["segments"]:
            start, stop = leaves[segment["leaf"]], leaves[segment["leaf"] + 1]
            if segment["state"] != stop.state:
                recorded = State.load(folder / "states" / f"{stop.index}.safetensors")
                name = first_difference(recorded, State.load(_end(scratch, stop.index)))
                raise TrainingFailed(_irreproducible(_span(start, stop), name))
        tried = tried[result["done"] :]


def _end(scratch: Path, leaf: int) -> Path:
    """The replayed state of a leaf."""
    return scratch / "ends" / f"{leaf}.safetensors"


def _start(contract: Contract, folder: Path) -> StartReport:
    """The script's initial parameters beside those under another seed."""
    work = fresh_work(folder, "start")
    other = another_start(contract, work.parent)

    def look() -> dict[str, Any]:
        own, fresh = State.load(folder / "states" / "0.safetensors"), State.load(other)
        return compare(own, fresh, committed=None, parents=contract.parents, work=work).model_dump(mode="json")

    return StartReport.model_validate(isolated(look, work.parent / "console.log", writes=()))


def _span(start: Leaf, stop: Leaf) -> str:
    return f"iterations {start.step} to {stop.step}"


def _irreproducible(where: str, name: str | None) -> str:
    return (
        f"the script does not reproduce itself: two runs of {where} under one seed differ in {name}. Usual causes: "
        "randomness from the operating system, values that depend on the clock, updates that no optimizer makes, or a generator "
        "function or an itertools object that the loop reads and whose position nobody can set: count in a variable instead"
    )


def _tail(console: Path) -> str:
    if not console.exists():
        return ""
    with console.open("rb") as file:
        file.seek(max(0, console.stat().st_size - 100_000))
        return file.read().decode(errors="replace")
