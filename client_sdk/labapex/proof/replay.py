"""Replays segments of a recorded run, and recomputes losses at its epoch checkpoints: what the verifier does.

The script runs from its beginning to the top of its training loop; there the engine puts in a committed state, lets k
iterations happen and looks at what came out. Then the next one, in the same process. Where the state that a segment begins
with is not at hand, the run goes there from the nearest one before it. Nothing of the worker's goes in but the opened
states, each checked against its leaf before use; seed, script, data and hyper-parameters are the contract's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.optim.optimizer import Optimizer

from labapex.errors import MalformedInput, TrainingFailed
from labapex.proof import merkle, starts
from labapex.proof.apart import state_error
from labapex.proof.folder import WEIGHTS
from labapex.proof.isolate import isolated
from labapex.proof.loaders import pass_digests
from labapex.proof.loops import Loop
from labapex.proof.randomness import derive
from labapex.proof.record import batches_digest, step_digest
from labapex.proof.runs import Run, runs
from labapex.proof.runtime import Engine, Finished
from labapex.proof.skeleton import foretell
from labapex.proof.state import State, distances, parameter_change, reference_distance
from labapex.proof.takehome import weights
from labapex.protocol.contract import Contract
from labapex.protocol.records import column
from labapex.protocol.replay import EpochSample, EvaluationReport, ReplayReport, ReplayRequest, SegmentReport

MADE = "made"  # folder beside `work/`, of the initial states and weights that come out
_now = time.perf_counter  # the plain clock: the engine marks the script's


@dataclass(frozen=True)
class Evaluation:
    """Recompute the loss of one iteration (counted within its epoch, from 0) at the epoch's checkpoint."""

    leaf: int
    epoch: int
    iteration: int


@dataclass(frozen=True)
class Weights:
    """Write the weights that the final leaf's state holds."""

    leaf: int


Item = Run | Evaluation | Weights


class Replayer:
    """The conductor of a replay: goes through `items` until it is done or only a fresh process can go on."""

    def __init__(
        self,
        contract: Contract,
        folder: Path,
        items: list[Item],
        *,
        compare: set[int] | None = None,
        orders: bool = False,
        keep: Mapping[int, Path] | None = None,
        initial: str = "initial.safetensors",
    ) -> None:
        self.contract = contract
        self.folder = folder
        (folder / MADE).mkdir(exist_ok=True)
        self.steps = contract.leaf_steps()
        self.items = items
        self.compare = compare or set()  # segments whose committed end state is at hand
        self.orders = orders  # derive the order of all batches too
        self.keep = keep or {}  # leaf -> the file for its replayed state
        self.initial = initial  # the file in `MADE` for the state at the top of the loop
        self.item: Item | None = None
        self.started = 0.0
        self.start: State | None = None  # that was put in
        self.leaf = 0  # passed last in this run
        self.before: State | None = None  # there
        self.losses: list[float] = []
        self.batches: list[bytes] = []
        self.norms: list[float] = []
        self.result: dict[str, Any] = {"done": 0, "initial": None, "orders": None, "segments": [], "evaluations": []}
        self.result["ended"] = None  # what ended the round before its items were done

    def search(self, engine: Engine, loop: Loop) -> None:
        raise AssertionError("a replay knows its loop from the contract")

    def forward(self, engine: Engine) -> None:
        pass

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        self.losses.append(loss)
        self.batches.append(step_digest(batches))

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0)

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if self.result["initial"] is None:
            initial = engine.capture()
            tree = initial.tree()
            self.result["initial"] = merkle.root_of_hashes(tree).hex()
            self.result["initial_chunks"], self.result["initial_settings"] = len(tree), engine.settings()
            initial.save(self.folder / MADE / self.initial)
            if self.orders:
                self.result["orders"] = self._orders(engine)
        if isinstance(self.item, Run):
            target = self.steps[self.leaf + 1]
            if engine.step < target or not (at_top or target == self.contract.iterations):
                return
            self._pass(engine, self.item)
            if self.leaf < self.item.stop:
                return
            self._done()
        elif isinstance(self.item, Evaluation):
            self._evaluated(self.item)
        while self.items and self.item is None:
            if not at_top or not self._go(engine, self.items[0]):
                if engine.heading is not None:
                    return
                raise Finished
        if self.item is None:
            raise Finished

    def _go(self, engine: Engine, item: Item) -> bool:
        """Put the engine where `item` begins. False where only a fresh process can get there."""
        self.started = _now()
        self.start = State.load(self.folder / "states" / f"{item.leaf}.safetensors")
        if not engine.restore(self.start):
            return False
        self.item, self.leaf, self.before = item, item.leaf, self.start
        self.losses, self.batches, self.norms = [], [], []
        if isinstance(item, Weights):
            safetensors.torch.save_file(weights(engine), self.folder / MADE / WEIGHTS)
            self._done()
        elif isinstance(item, Evaluation):
            self._aim(engine, item)
        return True

    def _aim(self, engine: Engine, item: Evaluation) -> None:
        """Let the next turn be that of an iteration of the epoch that just ended, with the weights as they are now."""
        loop, per_epoch = engine.current, self.contract.facts.iterations_per_epoch
        assert loop is not None
        back = per_epoch - item.iteration
        number = max(0, loop.count - back)
        engine.aim(item.epoch * per_epoch - back - number, number)

    def _evaluated(self, item: Evaluation) -> None:
        self.result["evaluations"].append([item.epoch, self.losses[0] if self.losses else None])
        while not self.losses and len(self.items) > 1 and _same_epoch(self.items[1], item):
            self._done()  # the loop's condition forbids another turn: so it does for this epoch's other iterations
        self._done()

    def _done(self) -> None:
        self.items.pop(0)
        self.result["done"] += 1
        self.item = None

    def _pass(self, engine: Engine, run: Run) -> None:
        """Report the segment that ends here."""
        assert self.start is not None
        assert self.before is not None
        after = engine.capture()
        tree = after.tree()
        if (file := self.keep.get(self.leaf + 1)) is not None:
            after.save(file)
        measured, error = None, None
        if self.leaf in self.compare:
            claimed = State.load(self.folder / "states" / f"{self.leaf + 1}.safetensors")
            measured = distances(claimed=claimed, replayed=after, start=self.start)
            error = state_error(claimed=claimed, replayed=after, start=self.start)
        mean = sum(self.norms) / len(self.norms) if self.norms else None
        report = SegmentReport(
            leaf=self.leaf,
            origin=run.leaf if run.leaf < self.leaf else None,
            start=self.steps[self.leaf],
            stop=self.steps[self.leaf + 1],
            state=merkle.root_of_hashes(tree).hex(),
            chunks=len(tree),
            settings=engine.settings(),
            batches=batches_digest(self.batches),
            losses=column(self.losses),
            gradient_norm=mean if mean is not None and mean < float("inf") else None,
            update_norm=parameter_change(self.before, after),
            distances=measured,
            error=error,
            seconds=_now() - self.started,
        )
        self.result["segments"].append(report.model_dump(mode="json"))
        self.leaf, self.before, self.started = self.leaf + 1, after, _now()
        self.losses, self.batches, self.norms = [], [], []

    def _orders(self, engine: Engine) -> list[str] | None:
        """`Leaf.batches` of every leaf but the first, from the seed alone."""
        loop = engine.current
        if not self.contract.facts.has_loader or loop is None or len(loop.passes) != 1:
            return None
        if not loop.passes[0].loader.__dict__["_labapex_once"] or not _predictable(loop.passes[0].sampler):
            return None
        steps: list[bytes] = []
        for epoch in range(self.contract.epochs):
            one_pass = [step_digest([d]) for d in pass_digests(loop.passes[0], epoch)]
            steps += one_pass[: self.contract.facts.iterations_per_epoch]
        return [batches_digest(steps[a:b]) for a, b in zip(self.steps, self.steps[1:], strict=False)]


def _same_epoch(item: Item, other: Evaluation) -> bool:
    return isinstance(item, Evaluation) and item.leaf == other.leaf


def _predictable(sampler: Any) -> bool:
    """Whether a sampler is of torch's own: one of the script's own may depend on what the script told it meanwhile."""
    parts = [sampler, getattr(sampler, "sampler", None)]
    return all(p is None or type(p).__module__.startswith("torch.utils.data.") for p in parts)


def replay(*, request: ReplayRequest, folder: Path) -> ReplayReport:
    """Carry out a request. `folder` holds `work/` and `states/`; `weights.safetensors` is written into it.

    What the worker's states or the script do wrong stands in the report; this raises only for a broken request.
    """
    began = _now()
    contract = request.contract
    mismatched = [n for n, digest in sorted(request.digests.items()) if not _matches(folder, n, digest)]
    final = len(contract.leaf_steps()) - 1
    usable = set(request.digests) - set(mismatched)
    items: list[Item] = [*runs([n for n in request.segments if n not in mismatched], usable)]
    items += [Evaluation(e.leaf, e.epoch, i) for e in request.evaluations if e.leaf in usable for i in e.iterations]
    items += [Weights(final)] if final in usable else []
    items.sort(key=lambda item: (item.leaf, type(item).__name__))
    foretold = foretell(contract, folder, request.foretell) if request.foretell else None
    compare = {n for n in request.compare if n + 1 in usable}
    make = {n: folder / MADE / f"{n}.safetensors" for n in request.make}
    console, writes = folder / "console.log", _writes(folder)

    problem = None
    start: dict[str, Any] = {}
    begun: dict[str, Any] = {}
    segments: list[SegmentReport] = []
    losses: dict[int, list[float | None]] = {}
    first = True
    try:
        while items or first:
            result = isolated(lambda: _round(contract, folder, items, compare, make, first), console, writes=writes)  # noqa: B023
            if start.get("initial") is None:
                start = result
            segments += [SegmentReport.model_validate(s) for s in result["segments"]]
            for epoch, loss in result["evaluations"]:
                losses.setdefault(epoch, []).append(loss)
            if result["ended"] is not None:
                raise TrainingFailed(result["ended"])
            if not result["done"] and items:
                raise TrainingFailed(f"the run cannot be brought to leaf {items[0].leaf} of {final}")
            items = items[result["done"] :]
            first = False
        if (made := folder / MADE / WEIGHTS).exists():
            made.replace(folder / WEIGHTS)
        other = another_start(contract, folder)
        begun = isolated(lambda: _beginnings(contract, folder, other, 0 in usable), console, writes=())
    except (TrainingFailed, MalformedInput) as error:
        problem = str(error)[-20_000:]
    return ReplayReport(
        problem=problem,
        mismatched=tuple(mismatched),
        initial_state=start.get("initial"),
        initial_chunks=start.get("initial_chunks"),
        initial_settings=start.get("initial_settings"),
        reference_distance=begun.get("reference"),
        start=begun.get("start"),
        start_error=begun.get("apart"),
        foretold=foretold,
        batches=tuple(start["orders"]) if start.get("orders") is not None else None,
        segments=tuple(segments),
        evaluations=tuple(_evaluations(request.evaluations, losses)),
        seconds=_now() - began,
    )


def _round(
    contract: Contract, folder: Path, items: list[Item], compare: set[int], make: Mapping[int, Path], orders: bool
) -> dict[str, Any]:
    replayer = Replayer(contract, folder, list(items), compare=compare, keep=make, orders=orders)
    try:
        Engine.under(contract, folder / "work", replayer).run(contract.threads)
    except (TrainingFailed, MalformedInput) as error:
        replayer.result["ended"] = str(error)  # what was found out until then holds
    return replayer.result


def another_start(contract: Contract, folder: Path) -> Path:
    """The initial state under another seed, as a file. Raises `TrainingFailed`, `MalformedInput`.

    The script in `folder`/work is run to the top of its loop."""
    seed, fresh = f"{derive(contract.seed, 'reference'):064x}", folder / MADE / "fresh.safetensors"

    def start() -> dict[str, Any]:
        replayer = Replayer(contract, folder, [], initial=fresh.name)
        Engine.under(contract, folder / "work", replayer, seed=seed).run(contract.threads)
        return {}

    isolated(start, folder / "console.log", writes=_writes(folder))
    return fresh


def _writes(folder: Path) -> tuple[Path, Path]:
    """Where a script that is run again may write: not to the states that it is measured against."""
    (folder / MADE).mkdir(exist_ok=True)
    return folder / "work", folder / MADE


def _beginnings(contract: Contract, folder: Path, other: Path, opened: bool) -> dict[str, Any]:
    """How the start that the seed gives stands to another one and, where that was `opened`, to the committed one."""
    own, fresh = State.load(folder / MADE / "initial.safetensors"), State.load(other)
    committed = State.load(folder / "states" / "0.safetensors") if opened else None
    start = starts.compare(own, fresh, committed=committed, parents=contract.parents, work=folder / "work")
    return {
        "reference": reference_distance(own, fresh),
        "start": start.model_dump(mode="json"),
        "apart": state_error(claimed=committed, replayed=own) if committed is not None else None,
    }


def _matches(folder: Path, leaf: int, digest: str) -> bool:
    try:
        return State.load(folder / "states" / f"{leaf}.safetensors").digest() == digest
    except MalformedInput:
        return False


def _evaluations(asked: tuple[EpochSample, ...], losses: dict[int, list[float | None]]) -> Iterator[EvaluationReport]:
    for sample in asked:
        found = losses.get(sample.epoch, [])
        values = [x for x in found if x is not None]
        mean = sum(values) / len(values) if values and len(values) == len(found) else None
        finite = mean is not None and abs(mean) < float("inf")
        yield EvaluationReport(epoch=sample.epoch, mean=mean if finite else None, n=len(found))
