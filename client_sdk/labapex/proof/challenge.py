"""Which states a worker must open: drawn after the last commitment, from randomness that it could not foresee.

First one chunk of the parameters, which every kept state must show; then, with the updates ranked by what it showed, the
states whose segments are replayed. Both draws are seeded by nonces that are published with the proof, so anyone may repeat them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from labapex.proof import chunks
from labapex.proof.chunks import Measured
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.replay import EpochSample

ABRUPT = 3  # changes of the updates whose two segments are always replayed
RANKED_EPOCHS = 8  # epochs whose largest updates are replayed: those of all 200 would cost a fortieth of the training
EVALUATED_EPOCHS = 3  # PEV of every epoch would cost a tenth of the training and decides nothing
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


def draw_chunk(contract: Contract, random: random.Random) -> int | None:
    """The number of the chunk that every kept state is to show; None where parameters have none that could be looked at."""
    count = chunks.count(contract.facts.layout)
    return random.randrange(count) if count else None


def draw(
    contract: Contract,
    leaves: Sequence[Leaf],
    *,
    measured: Measured | None = None,
    audit_segments: int,
    top_q: int,
    pev_percent: float,
    random: random.Random,
    ends: bool,
) -> Opening:
    """Draw which states are opened, for a complete log of leaves.

    `audit_segments` segments uniformly at random; the `top_q` with the largest updates of the run, and of each of up to eight
    epochs (Jia et al., Algorithm 2), as `measured`; both sides of the most abrupt changes, measured and claimed; the first and
    the last; the checkpoints of up to three epochs with `pev_percent` of their iterations; the final state, and the second, in
    which all is there that the first iterations make (`invariants` compares states). `ends` opens every segment's end state
    as well. `random` must be unpredictable for the worker.

    Of what an earlier host has done there are the states that the platform holds: in place of another one the nearest before
    it is opened, from which a replay passes the segment, and epochs are evaluated whose checkpoint is there.
    """
    count = len(leaves) - 1
    segments = {0, count - 1} | set(random.sample(range(count), min(audit_segments, count)))
    ranked = largest_updates(contract, leaves, measured)
    for epoch in random.sample(sorted(ranked), min(RANKED_EPOCHS, len(ranked))):
        segments |= set(ranked[epoch][:top_q])
    segments |= set(_ranked(leaves, measured)[:top_q])
    for found in (None, measured) if measured is not None else (None,):
        segments |= abrupt_changes(leaves, chunks.updates(leaves, found), ABRUPT, random)
    steps = {leaf.step: leaf.index for leaf in leaves}
    per_epoch = contract.facts.iterations_per_epoch
    wanted = min(per_epoch, max(1, round(per_epoch * pev_percent / 100)))
    shown = [e for e in range(1, contract.counted + 1) if contract.origin(leaf := steps[e * per_epoch]) == leaf]
    evaluations = tuple(
        EpochSample(
            epoch=epoch,
            leaf=steps[epoch * per_epoch],
            iterations=tuple(sorted(random.sample(range(per_epoch), wanted))),
        )
        for epoch in sorted(random.sample(shown, min(EVALUATED_EPOCHS, len(shown))))
    )
    wanted_states = (
        segments | {e.leaf for e in evaluations} | {1, count} | ({s + 1 for s in segments} if ends else set())
    )
    indices = {contract.origin(index) for index in wanted_states}
    return Opening(
        indices=tuple(sorted(indices)),
        segments=tuple(sorted(segments)),
        evaluations=evaluations,
        compare=tuple(sorted(s for s in segments if s + 1 in indices)),
    )


def draw_stint(leaves: Sequence[Leaf], begin: int, *, audit_segments: int, random: random.Random) -> tuple[int, ...]:
    """Draw what is replayed of the work of a host that was lost: `leaves` up to the one behind which another goes on, of which
    it has made those after `begin`. Segments at random, first, last, and both sides of the most abrupt changes claimed."""
    last = len(leaves) - 2
    segments = {begin, last} | set(random.sample(range(begin, last + 1), min(audit_segments, last + 1 - begin)))
    changed = abrupt_changes(leaves[begin:], chunks.updates(leaves[begin:], None), ABRUPT, random)
    return tuple(sorted(segments | {begin + segment for segment in changed}))


def largest_updates(contract: Contract, leaves: Sequence[Leaf], measured: Measured | None) -> dict[int, list[int]]:
    """The segments of each epoch (from 0), that with the largest update first, the earlier of equals first.

    An update that is not finite ranks first: where a run turned into NaN, all that follows is foretold."""
    per_epoch = contract.facts.iterations_per_epoch
    by_epoch: dict[int, list[int]] = {}
    for segment in _ranked(leaves, measured):
        by_epoch.setdefault(leaves[segment].step // per_epoch, []).append(segment)
    return by_epoch


def abrupt_changes(leaves: Sequence[Leaf], updates: Sequence[float], count: int, random: random.Random) -> set[int]:
    """The segments on both sides of the `count` largest ratios of one update to the next, where these are large.

    A worker who exchanges the state once, for one from which nothing needs to be computed any more (a learning rate of zero,
    weights that are no numbers), has all later segments replayed exactly. There the updates change abruptly: from or to
    nothing, or not finite, counts as endless. Equal ratios are taken by chance."""
    paces = [norm / max(1, b.step - a.step) for norm, (a, b) in zip(updates, itertools.pairwise(leaves), strict=True)]
    ratios = [(_ratio(a, b), random.random(), index) for index, (a, b) in enumerate(itertools.pairwise(paces))]
    chosen = [index for ratio, _, index in sorted(ratios, reverse=True)[:count] if ratio >= math.log(ABRUPT_RATIO)]
    return {segment for index in chosen for segment in (index, index + 1)}


def _ranked(leaves: Sequence[Leaf], measured: Measured | None) -> list[int]:
    """All segments, those with the largest updates first; what a chunk cannot tell apart is ranked by the claims."""
    pairs = zip(chunks.updates(leaves, measured), chunks.updates(leaves, None), strict=True)
    return [n for _, _, n in sorted((-found, -claimed, n) for n, (found, claimed) in enumerate(pairs))]


def _ratio(one: float, other: float) -> float:
    """|log(one / other)|; endless where just one of them is zero, or not finite."""
    if one == other:
        return 0.0
    finite = math.isfinite(one) and math.isfinite(other)
    return abs(math.log(one) - math.log(other)) if one and other and finite else math.inf
