"""Replays segments of a recorded run, and recomputes losses at its epoch checkpoints: what the verifier does.

The script runs from its beginning to the top of its training loop; there the engine puts in a committed state, lets k
iterations happen and looks at what came out. Then the next one, in the same process. Nothing of the worker's goes in
but the opened states, each checked against its leaf before use; seed, script, data and hyper-parameters are the contract's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.optim.optimizer import Optimizer

from labapex.errors import MalformedInput, TrainingFailed
from labapex.proof.isolate import isolated
from labapex.proof.loaders import pass_digests
from labapex.proof.loops import Loop
from labapex.proof.randomness import derive
from labapex.proof.record import batches_digest, step_digest
from labapex.proof.runtime import Engine, Finished
from labapex.proof.state import State, distances, parameter_change, reference_distance
from labapex.proof.takehome import weights
from labapex.protocol.contract import Contract
from labapex.protocol.records import column
from labapex.protocol.replay import EpochSample, EvaluationReport, ReplayReport, ReplayRequest, SegmentReport

_now = time.perf_counter  # the plain clock: the engine marks the script's


@dataclass(frozen=True)
class Segment:
    """Replay from leaf `leaf` to the next one."""

    leaf: int


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


Item = Segment | Evaluation | Weights


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
        keep: Path | None = None,
    ) -> None:
        self.contract = contract
        self.folder = folder
        self.steps = contract.leaf_steps()
        self.items = items
        self.compare = compare or set()  # segments whose committed end state is at hand
        self.orders = orders  # derive the order of all batches too
        self.keep = keep  # a folder for replayed end states, named by the segment's leaf
        self.item: Item | None = None
        self.started = 0.0
        self.start: State | None = None
        self.losses: list[float] = []
        self.batches: list[bytes] = []
        self.norms: list[float] = []
        self.result: dict[str, Any] = {"done": 0, "initial": None, "orders": None, "segments": [], "evaluations": []}

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
            self.result["initial"] = initial.digest()
            initial.save(self.folder / "initial.safetensors")
            if self.orders:
                self.result["orders"] = self._orders(engine)
        if self.item is not None:
            target = self.steps[self.item.leaf + 1] if isinstance(self.item, Segment) else None
            if target is not None and (engine.step < target or not (at_top or target == self.steps[-1])):
                return  # on the way
            self._finish(engine)
        while self.items and self.item is None:
            if not at_top or not self._go(engine, self.items[0]):
                raise Finished
        if self.item is None:
            raise Finished

    def _go(self, engine: Engine, item: Item) -> bool:
        """Put the engine where `item` begins. False where only a fresh process can get there."""
        self.started = _now()
        self.start = State.load(self.folder / "states" / f"{item.leaf}.safetensors")
        if not engine.restore(self.start):
            return False
        self.item = item
        self.losses, self.batches, self.norms = [], [], []
        if isinstance(item, Weights):
            safetensors.torch.save_file(weights(engine), self.folder / "weights.safetensors")
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

    def _finish(self, engine: Engine) -> None:
        item = self.item
        if isinstance(item, Evaluation):
            self.result["evaluations"].append([item.epoch, self.losses[0] if self.losses else None])
            while not self.losses and len(self.items) > 1 and _same_epoch(self.items[1], item):
                self._done()  # the loop's condition forbids another turn: so it does for this epoch's other iterations
        elif isinstance(item, Segment):
            self.result["segments"].append(self._segment(engine, item))
        self._done()

    def _done(self) -> None:
        self.items.pop(0)
        self.result["done"] += 1
        self.item = None

    def _segment(self, engine: Engine, item: Segment) -> dict[str, Any]:
        assert self.start is not None
        after = engine.capture()
        if self.keep is not None:
            after.save(self.keep / f"{item.leaf}.safetensors")
        measured = None
        if item.leaf in self.compare:
            claimed = State.load(self.folder / "states" / f"{item.leaf + 1}.safetensors")
            measured = distances(claimed=claimed, replayed=after, start=self.start)
        mean = sum(self.norms) / len(self.norms) if self.norms else None
        report = SegmentReport(
            leaf=item.leaf,
            start=self.steps[item.leaf],
            stop=self.steps[item.leaf + 1],
            state=after.digest(),
            batches=batches_digest(self.batches),
            losses=column(self.losses),
            gradient_norm=mean if mean is not None and mean < float("inf") else None,
            update_norm=parameter_change(self.start, after),
            distances=measured,
            seconds=_now() - self.started,
        )
        return report.model_dump(mode="json")

    def _orders(self, engine: Engine) -> list[str] | None:
        """`Leaf.batches` of every leaf but the first, from the seed alone."""
        loop = engine.current
        if not self.contract.facts.has_loader or loop is None or len(loop.passes) != 1:
            return None
        if not _predictable(loop.passes[0].sampler):
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
    items: list[Item] = [Segment(n) for n in request.segments if n in usable]
    items += [Evaluation(e.leaf, e.epoch, i) for e in request.evaluations if e.leaf in usable for i in e.iterations]
    items += [Weights(final)] if final in usable else []
    items.sort(key=lambda item: (item.leaf, type(item).__name__))
    compare = {n for n in request.compare if n + 1 in usable}

    problem, initial, orders = None, None, None
    segments: list[SegmentReport] = []
    losses: dict[int, list[float | None]] = {}
    first = True
    try:
        while items or first:
            result = isolated(lambda: _round(contract, folder, items, compare, first), folder / "console.log")  # noqa: B023
            if initial is None:
                initial, orders = result["initial"], result["orders"]
            segments += [SegmentReport.model_validate(s) for s in result["segments"]]
            for epoch, loss in result["evaluations"]:
                losses.setdefault(epoch, []).append(loss)
            if not result["done"] and items:
                raise TrainingFailed(f"the run cannot be brought to leaf {items[0].leaf} of {final}")
            items = items[result["done"] :]
            first = False
        reference = _reference(contract, folder)
    except (TrainingFailed, MalformedInput) as error:
        problem, reference = str(error)[-20_000:], None
    return ReplayReport(
        problem=problem,
        mismatched=tuple(mismatched),
        initial_state=initial,
        reference_distance=reference,
        batches=tuple(orders) if orders is not None else None,
        segments=tuple(segments),
        evaluations=tuple(_evaluations(request.evaluations, losses)),
        seconds=_now() - began,
    )


def _round(contract: Contract, folder: Path, items: list[Item], compare: set[int], orders: bool) -> dict[str, Any]:
    replayer = Replayer(contract, folder, list(items), compare=compare, orders=orders)
    Engine.under(contract, folder / "work", replayer).run(contract.threads)
    return replayer.result


def _reference(contract: Contract, folder: Path) -> float | None:
    """d_ref: how far apart the initial parameters under two seeds are."""
    own = State.load(folder / "initial.safetensors")
    other = f"{derive(contract.seed, 'reference'):064x}"

    def start() -> dict[str, Any]:
        replayer = Replayer(contract, folder, [])
        Engine.under(contract, folder / "work", replayer, seed=other).run(contract.threads)
        return {}

    isolated(start, folder / "console.log")
    return reference_distance(own, State.load(folder / "initial.safetensors"))


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
