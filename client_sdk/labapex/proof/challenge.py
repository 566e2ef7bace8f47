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

ABRUPT = 3  # changes of the claimed updates whose two segments are always replayed
EVALUATED_EPOCHS = 5  # PEV of every epoch would cost a tenth of the training and decides nothing
ABRUPT_RATIO = 4.0  # of one update to the next, each for one iteration: what honest training rarely does


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
    Algorithm 2), both sides of the most abrupt changes, the first and the last; the checkpoints of up to five epochs with
    `pev_percent` of their iterations; the final state. `ends` opens every segment's end state as well. `random` must be
    unpredictable for the worker (`random.SystemRandom`).
    """
    count = len(leaves) - 1
    segments = {0, count - 1} | set(random.sample(range(count), min(audit_segments, count)))
    segments |= largest_updates(contract, leaves, top_q) | abrupt_changes(leaves, ABRUPT, random)
    steps = {leaf.step: leaf.index for leaf in leaves}
    per_epoch = contract.facts.iterations_per_epoch
    wanted = min(per_epoch, max(1, round(per_epoch * pev_percent / 100)))
    evaluations = tuple(
        EpochSample(
            epoch=epoch,
            leaf=steps[epoch * per_epoch],
            iterations=tuple(sorted(random.sample(range(per_epoch), wanted))),
        )
        for epoch in sorted(random.sample(range(1, contract.epochs + 1), min(EVALUATED_EPOCHS, contract.epochs)))
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


def abrupt_changes(leaves: Sequence[Leaf], count: int, random: random.Random) -> set[int]:
    """The segments on both sides of the `count` largest ratios of one claimed update to the next, where these are large.

    A worker who exchanges the state once, for one from which nothing needs to be computed any more (a learning rate of zero,
    weights that are no numbers), has all later segments replayed exactly. There the updates change abruptly: from or to
    nothing, or not finite, counts as endless. To hide it, claims must be false in many leaves. Equal ratios are
    taken by chance."""
    paces = [_pace(a, b) for a, b in itertools.pairwise(leaves)]
    ratios = [(_ratio(a, b), random.random(), index) for index, (a, b) in enumerate(itertools.pairwise(paces))]
    chosen = [index for ratio, _, index in sorted(ratios, reverse=True)[:count] if ratio >= math.log(ABRUPT_RATIO)]
    return {segment for index in chosen for segment in (index, index + 1)}


def _pace(before: Leaf, after: Leaf) -> float | None:
    """The claimed update for one iteration."""
    return None if after.update_norm is None else after.update_norm / max(1, after.step - before.step)


def _ratio(one: float | None, other: float | None) -> float:
    """|log(one / other)|; endless where just one of them is zero, or not finite."""
    if one == other:
        return 0.0
    return abs(math.log(one) - math.log(other)) if one and other else math.inf
