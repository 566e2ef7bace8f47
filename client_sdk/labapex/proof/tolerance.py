"""What honest work may differ by between two classes of hosts: measured, never assumed. Pure: no tensors, no I/O.

Two hosts of one class give the same bits. Between two classes rounding differs, and training enlarges it: little where it is
calm, beyond every bound where it is chaotic. So there is a line for each pair of classes, each k, and each phase of
the run, drawn from honest runs that were replayed on the other class, and where honest work comes near what lies show there
is none: such a phase cannot be judged, and nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.records import Leaf, uncolumn
from labapex.protocol.replay import ReplayReport, SegmentReport

MAX_CALIBRATION = 4 << 20  # bytes of the document
PHASES = (0.05, 0.25, 1.0)  # of a run's iterations: where it has just begun all is most chaotic
NEEDED = 10  # segments of a phase, before its largest error says anything of the next one
FACTOR = 3.0  # times the largest error of so many honest segments
RESOLUTION = 1e-6  # smaller errors are a few units in the last place of float32, and count as this one
LEAST_LIE = 0.09  # relative error: what the mildest lies show
COARSEST_LOSS = 0.01  # relative: a coarser line would let better losses be reported than were reached
FARTHEST_START = 1e-4  # relative: the start follows from the seed, and nothing has enlarged its rounding yet

Largest = float | None
"""The largest value that was met; None: one of them was not finite, or not to be measured."""


class Line(Message):
    """What a segment may differ by and pass. All relative, so without a unit."""

    start: float = Field(ge=0, allow_inf_nan=False)  # ||S' - S|| / ||S|| of the first state
    error: float = Field(ge=0, allow_inf_nan=False)  # ||S' - S|| / ||S - S_start|| of a segment's end
    loss: float = Field(ge=0, allow_inf_nan=False)  # |logged - recomputed| / max(1, |logged|) of an iteration


class Phase(Message):
    """The segments that begin before this share of the iterations, and after the phase before."""

    until: float = Field(gt=0, le=1)
    segments: int = Field(default=0, ge=0)  # that were measured
    error: Largest = Field(default=0.0, ge=0, allow_inf_nan=False)
    cos: Largest = Field(default=0.0, allow_inf_nan=False)  # 1 - cosine of W' and W; shown, no line follows from it
    loss: Largest = Field(default=0.0, ge=0, allow_inf_nan=False)


class Calibration(Message):
    """The errors of honest runs that hosts of one class recorded and a host of another replayed, at one k."""

    format: Literal[1] = 1
    worker: Environment
    verifier: Environment
    checkpoint_every: int = Field(ge=1)
    runs: tuple[Digest, ...] = Field(default=(), max_length=50_000)  # proof roots, each once
    start: Largest = Field(default=0.0, ge=0, allow_inf_nan=False)
    phases: tuple[Phase, ...] = Field(
        default=tuple(Phase(until=until) for until in PHASES), min_length=1, max_length=100
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        bounds = [phase.until for phase in self.phases]
        if bounds[-1] != 1 or any(b <= a for a, b in pairwise(bounds)):
            raise ValueError("phases must ascend and end at 1")
        if len(set(self.runs)) != len(self.runs):
            raise ValueError("a run counts once")
        if self.worker == self.verifier:
            raise ValueError("both classes are the same: there is nothing to tolerate")
        return self

    def line(self, phase: Phase) -> Line | str:
        """FACTOR x the largest that NEEDED honest segments or more have shown, or RESOLUTION; else why there is none.

        There is none where the line of the error would reach LEAST_LIE, that of the loss COARSEST_LOSS, that of the start
        FARTHEST_START."""
        if phase.segments < NEEDED:
            return f"{phase.segments} segments were measured, {NEEDED} are needed"
        lines = []
        for what, largest, bound in (
            ("starts are", self.start, FARTHEST_START),
            ("segments end", phase.error, LEAST_LIE),
            ("losses are", phase.loss, COARSEST_LOSS),
        ):
            if largest is None:
                return f"honest {what} apart beyond measure"
            lines.append(FACTOR * max(largest, RESOLUTION))
            if lines[-1] >= bound:
                return f"honest {what} {largest:.2g} apart: {FACTOR:g} times that is not below {bound:g}"
        return Line(start=lines[0], error=lines[1], loss=lines[2])

    def at(self, step: int, total: int) -> int:
        """The number of the phase of a segment that begins after `step` of `total` iterations."""
        return next(n for n, phase in enumerate(self.phases) if step < phase.until * total or phase.until == 1)

    def tolerance(self, worker: Environment | None, verifier: Environment | None, every: int) -> Tolerance:
        """What it says of work of `worker`, judged on `verifier`, at k = `every`."""
        if (worker, verifier) != (self.worker, self.verifier):
            why = f"the calibration is of work of {described(self.worker)} judged on {described(self.verifier)}"
            return Tolerance(reason=why)
        if every != self.checkpoint_every:
            return Tolerance(reason=f"the calibration is for k = {self.checkpoint_every}, and k is {every} here")
        return Tolerance(
            calibration=self, source=f"calibrated with {len(self.runs)} honest runs of this pair of classes"
        )

    def gap(self, contract: Contract) -> str | None:
        """Why some segment of such a run could not be judged; None where each has a line."""
        steps, total = contract.leaf_steps(), contract.iterations
        firsts = {self.at(step, total): step for step in reversed(steps[:-1])}
        lines = (Tolerance(calibration=self).line(firsts[phase], total) for phase in sorted(firsts))
        return next((line for line in lines if isinstance(line, str)), None)

    def with_run(self, run: str, start: float | None, measured: Iterable[Measured], total: int) -> Calibration:
        """With one more honest run of `total` iterations."""
        phases = list(self.phases)
        for found in measured:
            number = self.at(found.step, total)
            phases[number] = _more(phases[number], found)
        return self.model_copy(
            update={"runs": (*self.runs, run), "start": _larger(self.start, start), "phases": tuple(phases)}
        )


@dataclass(frozen=True)
class Tolerance:
    """Where a verdict between classes has its lines from: a calibration, or the verifier's own word, or neither."""

    calibration: Calibration | None = None
    own: Line | None = None
    source: str = ""
    reason: str = "no calibration of this pair of classes is at hand"

    def line(self, step: int, total: int) -> Line | str:
        """The line of a segment that begins after `step` of `total` iterations; else why there is none, in words."""
        if self.own is not None:
            return self.own
        if self.calibration is None:
            return self.reason
        phase = self.calibration.phases[self.calibration.at(step, total)]
        line = self.calibration.line(phase)
        return f"of the phase until {phase.until:.0%} of a run {line}" if isinstance(line, str) else line


@dataclass(frozen=True)
class Measured:
    """What one replayed segment of an honest run showed."""

    step: int  # where it begins
    error: float | None
    cos: float | None
    loss: float | None


def measure(leaves: Sequence[Leaf], losses: Sequence[float], report: ReplayReport) -> Iterator[Measured]:
    """What a replay of all segments of an honest run showed."""
    for segment in report.segments:
        far = loss_error(losses[segment.start : segment.stop], uncolumn(segment.losses))
        cos = segment.distances.cos if segment.distances is not None else None
        same = leaves[segment.leaf + 1].state == segment.state
        yield Measured(
            segment.start, segment_error(segment, leaves[segment.leaf + 1]), 0.0 if same else cos, _finite(far)
        )


def segment_error(segment: SegmentReport, end: Leaf) -> float | None:
    """Of the state that was replayed against the one that `end` commits to; None: not finite, or not to be compared."""
    return 0.0 if segment.state == end.state else segment.error


def start_error(first: Leaf, report: ReplayReport) -> float | None:
    """Of the state that the seed gives here against the first that was committed; None as above."""
    return 0.0 if first.state == report.initial_state else report.start_error


def loss_error(logged: Sequence[float], recomputed: Sequence[float]) -> float:
    """The largest |logged - recomputed| / max(1, |logged|); infinite where the two are not of one length."""
    if len(logged) != len(recomputed):
        return math.inf
    return max((loss_difference(a, b) / max(1.0, abs(a)) for a, b in zip(logged, recomputed, strict=True)), default=0.0)


def loss_difference(a: float, b: float) -> float:
    """|a - b|; 0 for two equal non-finite losses, infinite where only one of them is finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b)
    return difference if math.isfinite(difference) else math.inf


def described(environment: Environment | None) -> str:
    """A class of hosts in words."""
    if environment is None:
        return "a class that nobody told"
    e = environment
    threads = f"{e.threads} thread" + ("s" if e.threads > 1 else "")
    return f"{e.device} ({e.capability}, torch {e.torch}, Python {e.python}, {threads})"


def _more(phase: Phase, found: Measured) -> Phase:
    return phase.model_copy(
        update={
            "segments": phase.segments + 1,
            "error": _larger(phase.error, found.error),
            "cos": _larger(phase.cos, found.cos),
            "loss": _larger(phase.loss, found.loss),
        }
    )


def _larger(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
