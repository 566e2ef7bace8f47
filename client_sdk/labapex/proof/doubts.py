"""What gives cause to look again: states and segments that are opened besides the drawn ones. No tensors here.

A doubt is a pure function of all that is known by now and of the state files that are at hand. What it names is asked for in
another round, only what is new is uploaded and replayed, and then all is judged together. A doubt never decides: what it
finds strange may be honest, and is replayed like anything else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from labapex.proof.evidence import Evidence, Further
from labapex.proof.foretold import skeleton_doubt
from labapex.proof.invariants import exchanged
from labapex.proof.orders import order_doubt
from labapex.proof.policy import decide
from labapex.proof.rules import judge
from labapex.protocol.contract import Contract
from labapex.protocol.replay import ReplayReport

ROUNDS = 24  # a search by halves among 100,000 leaves takes 17
STATES = 96  # that are asked for by doubts, in all rounds together

Doubt = Callable[[Evidence, Mapping[int, Path]], Further]
DOUBTS: tuple[Doubt, ...] = (order_doubt, skeleton_doubt, exchanged)


def doubts(evidence: Evidence, opened: Mapping[int, Path], *, ends: bool, rounds: int, states: int) -> Further:
    """What is to be looked at in another round; empty where it is not called for.

    `opened`: the files of the states that are at hand, by leaf; hostile, though each was found to be its leaf's.
    `ends`: a segment's end is needed too. `rounds` and `states`: how many doubts have had so far. Named is only what exists
    and is new; a run that is rejected already raises none.
    """
    if evidence.replay is None or rounds >= ROUNDS or decide(judge(evidence))[0] == "rejected":
        return Further()
    found = [doubt(evidence, opened) for doubt in DOUBTS]
    count, room = len(evidence.leaves) - 1, STATES - states
    segments, indices = set[int](), set[int]()
    contract = evidence.contract
    asked_for, passed = _answerable(contract, {i for each in found for i in each.indices if 0 <= i <= count})
    for segment in sorted(({s for each in found for s in each.segments} | passed) - set(evidence.asked)):
        needed = {contract.origin(i) for i in ({segment, segment + 1} if ends else {segment}) if 0 <= i <= count}
        needed -= opened.keys()
        if 0 <= segment < count and len(indices | needed) <= room:
            segments.add(segment)
            indices |= needed
    for index in sorted(asked_for - opened.keys() - indices):
        if len(indices) < room:
            indices.add(index)
    return Further(frozenset(indices), frozenset(segments))


def _answerable(contract: Contract, indices: Collection[int]) -> tuple[set[int], set[int]]:
    """The states of `indices` that can be shown; and in place of the others, which earlier hosts took with them, the segments
    between those that are held: a replay passes all leaves there."""
    shown, passed = set[int](), set[int]()
    held = sorted(contract.held)
    for index in indices:
        origin = contract.origin(index)
        if origin == index:
            shown.add(index)
        else:
            passed.update(range(origin, held[bisect_right(held, index)]))
    return shown, passed


def together(before: ReplayReport, after: ReplayReport) -> ReplayReport:
    """Two rounds' reports as one. What belongs to the whole run is the first one's."""
    return before.model_copy(
        update={
            "problem": before.problem if before.problem is not None else after.problem,
            "mismatched": (*before.mismatched, *after.mismatched),
            "segments": (*before.segments, *after.segments),
            "seconds": before.seconds + after.seconds,
        }
    )
