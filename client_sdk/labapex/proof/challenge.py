"""Which states a worker must open: drawn after the last commitment, from randomness that it could not foresee."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import EpochSample


@dataclass(frozen=True)
class Opening:
    """`indices`: leaves whose states are to be uploaded. `segments`: leaves from which k steps are replayed.

    `evaluations`: what PEV recomputes. `compare`: segments whose end state is opened too, so that a distance can be told
    where the digests differ; where worker and verifier are of one class a digest is enough and most ends stay closed.
    """

    indices: tuple[int, ...]
    segments: tuple[int, ...]
    evaluations: tuple[EpochSample, ...]
    compare: tuple[int, ...]


def draw(
    contract: Contract,
    leaves: Sequence[Leaf],
    *,
    audit_segments: int,
    top_q: int,
    pev_percent: float,
    random: random.Random,
    ends: bool,
) -> Opening:
    """Draw a challenge for a complete log of leaves.

    `audit_segments` segments uniformly at random, the `top_q` of each epoch with the largest claimed update (Jia et al.,
    Algorithm 2), the first and the last; each epoch's checkpoint with `pev_percent` of its iterations; the final state. `ends`
    opens every segment's end state as well. `random` must be unpredictable for the worker (`random.SystemRandom`).
    """
    count = len(leaves) - 1
    segments = {0, count - 1} | set(random.sample(range(count), min(audit_segments, count)))
    segments |= largest_updates(contract, leaves, top_q)
    steps = {leaf.step: leaf.index for leaf in leaves}
    per_epoch = contract.facts.iterations_per_epoch
    wanted = min(per_epoch, max(1, round(per_epoch * pev_percent / 100)))
    evaluations = tuple(
        EpochSample(
            epoch=epoch,
            leaf=steps[epoch * per_epoch],
            iterations=tuple(sorted(random.sample(range(per_epoch), wanted))),
        )
        for epoch in range(1, contract.epochs + 1)
    )
    indices = segments | {e.leaf for e in evaluations} | {count} | ({s + 1 for s in segments} if ends else set())
    return Opening(
        indices=tuple(sorted(indices)),
        segments=tuple(sorted(segments)),
        evaluations=evaluations,
        compare=tuple(sorted(s for s in segments if s + 1 in indices)),
    )


def largest_updates(contract: Contract, leaves: Sequence[Leaf], top_q: int) -> set[int]:
    """Of each epoch, the `top_q` segments with the largest claimed update norm, the earlier of equals first.

    A norm that is not finite ranks first: where a run turned into NaN, all that follows is foretold."""
    per_epoch = contract.facts.iterations_per_epoch
    by_epoch: dict[int, list[tuple[float, int]]] = {}
    for before, after in itertools.pairwise(leaves):
        norm = math.inf if after.update_norm is None else after.update_norm
        by_epoch.setdefault(before.step // per_epoch, []).append((-norm, before.index))
    return {index for ranked in by_epoch.values() for _, index in sorted(ranked)[:top_q]}
