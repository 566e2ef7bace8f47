"""What a verdict rests on: all that is known of a finished lease, gathered by the platform or read from a proof folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from labapex.proof.chunks import Measured
from labapex.proof.tolerance import Tolerance
from labapex.protocol.contract import Contract, Environment
from labapex.protocol.devices import Observation
from labapex.protocol.records import Leaf, Sample
from labapex.protocol.replay import ReplayReport, SegmentReport

Outcome = tuple[float | str | None, float | str | None, Literal["pass", "fail", "not-applicable"], str]
"""A rule's value, its limit, its result, and what there is to say of it."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of a finished lease. `losses` and `times` have one entry an iteration, in order."""

    contract: Contract
    losses: Sequence[float]
    times: Sequence[float]
    samples: Sequence[Sample]
    leaves: Sequence[Leaf]
    leaf_received_at: Sequence[float]
    chain_problem: str | None
    replay: ReplayReport | None
    opening_problem: str | None
    worker_environment: Environment | None
    verifier_environment: Environment | None
    top_q: int
    pev_percent: float
    observations: Sequence[Observation] = field(default=())  # the agent's own readings of the GPU
    asked: Sequence[int] = field(default=())  # segments that the challenge drew
    measured: Measured | None = None  # what one chunk of every kept state showed of the updates
    iteration_seconds: float | None = None  # the preflight's median, on the platform
    tolerance: Tolerance = field(default=Tolerance())  # where the two are of different classes
    known: Collection[str] | None = None  # states that other leases had committed to before; None: nobody keeps them

    @property
    def one_class(self) -> bool:
        """Whether worker and verifier reproduce each other bit for bit, so that digests must be equal."""
        return self.worker_environment is not None and self.worker_environment == self.verifier_environment

    @property
    def segments(self) -> Sequence[SegmentReport]:
        """Those that were replayed."""
        return self.replay.segments if self.replay is not None else ()

    def reproduced(self, segment: SegmentReport) -> bool:
        """Whether a segment's replay ended in the state that its leaf commits to."""
        end = segment.leaf + 1
        return 0 <= end < len(self.leaves) and self.leaves[end].state == segment.state


@dataclass(frozen=True)
class Further:
    """What another round is to open: leaves whose states are uploaded, segments that are replayed (from opened states)."""

    indices: frozenset[int] = frozenset()
    segments: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.indices or self.segments)


def passes(good: bool) -> Literal["pass", "fail"]:
    return "pass" if good else "fail"
