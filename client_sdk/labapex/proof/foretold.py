"""The rule about settings that were foretold without training, and the doubt that it raises. No tensors here.

How they are foretold stands in `skeleton`, which runs where the script may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from labapex.proof.evidence import Evidence, Further, Outcome
from labapex.protocol.canonical import Digest
from labapex.protocol.records import Leaf

LOOKED_AT = 3  # segments in which settings begin or cease to differ that are replayed besides the drawn ones


def skeleton(evidence: Evidence) -> Outcome:
    """Ours. The settings that each leaf claims (learning rates, decay, momentum ..) are those foretold by a run without
    training. Value: leaves whose settings differ; limit 0.

    Suspects: a script may set them by what cannot be foretold. Where they begin or cease to differ the segments are replayed,
    and where that reproduces all of them it was the script. Cannot see settings that are claimed and were not used."""
    report = evidence.replay
    foretold = report.foretold if report is not None else None
    if report is None or foretold is None:
        return None, 0.0, "not-applicable", "nothing was foretold"
    if foretold.problem is not None or len(foretold.settings) != len(evidence.leaves):
        return None, 0.0, "not-applicable", f"the script cannot be run without training: {foretold.problem or 'length'}"
    known = _differences(evidence.leaves, foretold.settings)
    if not known:
        return None, 0.0, "not-applicable", "the settings depend on the losses"
    wrong = [index for index, differs in known.items() if differs]
    open_ = len(foretold.settings) - len(known)
    detail = f"the settings of {open_} leaves depend on the losses" if open_ else ""
    if not wrong:
        return 0.0, 0.0, "pass", detail
    reached = {(s.leaf + 1, s.state) for s in report.segments}
    changes = _changes(known)
    if changes and all((n + 1, evidence.leaves[n + 1].state) in reached for n in changes):
        return None, 0.0, "not-applicable", "it was the script that set others: where it did, a replay does the same"
    return float(len(wrong)), 0.0, "fail", f"leaf {wrong[0]} is the first with other settings than were foretold"


def skeleton_doubts(leaves: Sequence[Leaf], foretold: Sequence[Digest | None]) -> set[int]:
    """Segments at whose ends the committed settings begin or cease to differ from the foretold ones: the first of them."""
    return set(sorted(_changes(_differences(leaves, foretold)))[:LOOKED_AT])


def skeleton_doubt(evidence: Evidence, opened: Mapping[int, Path]) -> Further:
    """What `skeleton` suspects is to be looked at."""
    report = evidence.replay
    if report is None or report.foretold is None or len(report.foretold.settings) != len(evidence.leaves):
        return Further()
    return Further(segments=frozenset(skeleton_doubts(evidence.leaves, report.foretold.settings)))


def _differences(leaves: Sequence[Leaf], foretold: Sequence[Digest | None]) -> dict[int, bool]:
    """Whether a leaf's settings differ, for each leaf whose settings are foretold."""
    pairs = enumerate(zip(leaves, foretold, strict=True))
    return {index: leaf.settings != due for index, (leaf, due) in pairs if due is not None}


def _changes(known: Mapping[int, bool]) -> set[int]:
    """The segments that end at a leaf which differs where the one foretold before it does not, or the other way round."""
    return {b - 1 for a, b in pairwise(known) if known[a] != known[b]}
