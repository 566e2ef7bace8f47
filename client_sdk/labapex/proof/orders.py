"""The rule about the order of batches, and the doubt that it raises. No tensors here.

The order of all epochs is derived from the seed and from the loader that the training loop reads first. A script may read
another one later, or leave an epoch early: so where leaves claim other batches than those, it is looked, and a replay decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from labapex.proof.evidence import Evidence, Further, Outcome

LOOKED_AT = 3  # stretches of such leaves whose first segments are replayed besides the drawn ones


def batch_order(evidence: Evidence) -> Outcome:
    """JIA V. Batch index digests of the leaves equal those that follow from the seed. Value: replayed segments that took others.
    A segment whose leaf claims the foretold ones and whose end is not reproduced began with a false state: `replay` says so.

    Where leaves begin to claim others than the loader read first would give, the segment is replayed too; where that was the
    script's doing it comes out again. Cannot see whether the batches' content was used, nor what is claimed of segments that
    were not replayed after such a place. A script without a DataLoader has no indices; its batches follow from the same seed."""
    report = evidence.replay
    if report is None:
        return None, 0.0, "not-applicable", "nothing was replayed"
    leaves = {leaf.index - 1: leaf for leaf in evidence.leaves}  # by the segment that they end
    replayed = {s.leaf for s in report.segments}
    foretold = dict(enumerate(report.batches or ()))
    wrong = sorted(
        s.leaf
        for s in report.segments
        if (leaf := leaves.get(s.leaf)) is None
        or (leaf.batches != s.batches and (leaf.batches != foretold.get(s.leaf) or leaf.state == s.state))
    )
    if wrong:
        return (
            float(len(wrong)),
            0.0,
            "fail",
            f"segment {wrong[0]} is the first that takes other batches than its leaf claims",
        )
    if report.batches is None and not evidence.contract.facts.has_loader:
        return None, 0.0, "not-applicable", "no DataLoader; the order follows from the seed wherever it was replayed"
    if report.batches is not None and len(report.batches) != len(evidence.leaves) - 1:
        return (
            float(len(report.batches)),
            float(len(evidence.leaves) - 1),
            "fail",
            "the order was derived for another run",
        )
    departures = _departures(evidence)
    if not departures:
        return 0.0, 0.0, "pass", ""
    if departures[0] not in replayed:
        return (
            None,
            0.0,
            "not-applicable",
            f"from segment {departures[0]} on other batches are claimed than was foretold",
        )
    return (
        0.0,
        0.0,
        "pass",
        f"from segment {departures[0]} on the script takes other batches: where it was replayed it does",
    )


def order_doubt(evidence: Evidence, opened: Mapping[int, Path]) -> Further:
    """Where other batches than the foretold ones are claimed is to be looked at."""
    return Further(segments=frozenset(_departures(evidence)[:LOOKED_AT]))


def _departures(evidence: Evidence) -> list[int]:
    """The segments with which leaves begin to claim other batches than were foretold."""
    due = evidence.replay.batches if evidence.replay is not None else None
    if due is None or len(due) != len(evidence.leaves) - 1:
        return []
    other = [leaf.batches != batches for leaf, batches in zip(evidence.leaves[1:], due, strict=True)]
    return [n for n, differs in enumerate(other) if differs and not (n and other[n - 1])]
