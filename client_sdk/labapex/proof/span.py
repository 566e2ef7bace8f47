"""How far the replay of one stretch of a proof ends from what the proof commits to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labapex.errors import LabApexError, UsageError
from labapex.proof.folder import Proof
from labapex.protocol.canonical import Message
from labapex.protocol.records import Leaf, uncolumn
from labapex.protocol.replay import Distances, ReplayReport, ReplayRequest


class SpanError(Message):
    """The error of one stretch. None: not finite, or not comparable, or the state it ends in is not in the folder."""

    origin: int  # step of the state that was put in; the replay ran from there
    start: int  # step
    stop: int
    digest_equal: bool  # the whole state, bit for bit
    l1: float | None
    l2: float | None
    linf: float | None
    cos: float | None  # 1 - cosine
    relative: float | None  # ||W' - W|| / ||W - W_origin||; 1 is what doing nothing yields
    losses: float | None  # largest |logged - recomputed|
    one_class: bool
    seconds: float


@dataclass(frozen=True)
class Span:
    """A stretch between two leaves, and the leaf whose state is put in to get there."""

    origin: Leaf
    start: Leaf
    stop: Leaf


def span(proof: Proof, *, start: int, steps: int) -> Span:
    """The stretch of `steps` iterations from step `start`, both ends at leaves. Raises `UsageError`."""
    leaves = {leaf.step: leaf for leaf in proof.leaves}
    if start not in leaves or steps < 1 or start + steps not in leaves:
        wrong = start if start not in leaves else start + steps
        near = sorted(leaves, key=lambda step: (abs(step - wrong), step))[:4]
        raise UsageError(f"there is no leaf at step {wrong}; the nearest are at {', '.join(map(str, sorted(near)))}")
    if proof.contract.leaf_steps() != sorted(leaves):
        raise UsageError("the proof's leaves are not those of its contract; `labapex verify` says more")
    origin = max((index for index in proof.states if index <= leaves[start].index), default=None)
    if origin is None:
        raise UsageError(f"no state at or before step {start} is in the folder; it was never opened")
    return Span(proof.leaves[origin], leaves[start], leaves[start + steps])


def request(proof: Proof, stretch: Span) -> ReplayRequest:
    """What the child is asked for."""
    given = {stretch.origin.index, stretch.stop.index} & proof.states
    return ReplayRequest(
        contract=proof.contract,
        segments=tuple(range(stretch.start.index, stretch.stop.index)),
        compare=(stretch.stop.index - 1,),
        digests={index: proof.leaves[index].state for index in given},
    )


def measure(proof: Proof, stretch: Span, report: ReplayReport) -> SpanError:
    """The error of one stretch. Raises `LabApexError` where it could not be replayed."""
    if report.mismatched:
        step = proof.leaves[report.mismatched[0]].step
        raise LabApexError(f"the state of step {step} is not the committed one")
    segments = [s for s in report.segments if s.start >= stretch.start.step]
    if report.problem is not None or not segments or segments[-1].stop != stretch.stop.step:
        raise LabApexError(f"the stretch could not be replayed: {report.problem or 'no reason was given'}")
    found = segments[-1].distances or Distances(l1=None, l2=None, linf=None, cos=None, relative=None)
    return SpanError(
        origin=stretch.origin.step,
        start=stretch.start.step,
        stop=stretch.stop.step,
        digest_equal=segments[-1].state == stretch.stop.state,
        losses=_losses_apart(
            proof.losses[stretch.start.step : stretch.stop.step], [x for s in segments for x in uncolumn(s.losses)]
        ),
        one_class=proof.environment is not None and proof.environment == report.environment,
        seconds=sum(s.seconds for s in report.segments),
        **found.model_dump(),
    )


def _losses_apart(logged: tuple[float, ...], again: list[float]) -> float | None:
    if len(logged) != len(again):
        return None
    apart = [0.0 if a == b or (a != a and b != b) else abs(a - b) for a, b in zip(logged, again, strict=True)]
    return max(apart) if all(map(math.isfinite, apart)) else None
