"""The rules of the sources, by their own names and formulas; what each cannot see is said there, and closed by ours.

LAB = "Ensuring Verifiable and Secure Outsourced Training of Deep Neural Networks" (Lab Apex, 2023); JIA = Jia et al.,
"Proof-of-Learning: Definitions and Practice", IEEE S&P 2021.
"""

from __future__ import annotations

import math
import statistics

from labapex.proof.challenge import largest_updates
from labapex.proof.evidence import Evidence, Outcome, passes
from labapex.protocol.replay import SegmentReport

DELTA = 0.01  # JIA VI-C: two magnitudes below the reference distance


def replay_top_q(evidence: Evidence) -> Outcome:
    """JIA Algorithm 2. Distance of the Q largest updates of each epoch, l2 over d_ref, against delta = 0.01.

    Accepts doing nothing: d_ref is dominated by the initial weights. Blind to a worker that makes just Q segments real."""
    ranked = largest_updates(evidence.contract, evidence.leaves, evidence.measured)
    largest = {segment for epoch in ranked.values() for segment in epoch[: evidence.top_q]}
    picked = [s for s in evidence.segments if s.leaf in largest]
    reference = evidence.replay.reference_distance if evidence.replay else None
    if not picked or not reference:
        return None, DELTA, "not-applicable", "no segment of the largest updates was replayed"
    distances = [_l2(evidence, s) for s in picked]
    known = [d / reference for d in distances if d is not None]
    if len(known) < len(distances):
        return (
            "unknown",
            DELTA,
            "fail",
            "a replayed state differs, and the committed one was not opened to measure by how much",
        )
    return max(known), DELTA, passes(max(known) < DELTA), f"d_ref {reference:.4g}: two seeds' initial parameters apart"


def vmo(evidence: Evidence) -> Outcome:
    """LAB 2.3. ||W_{t+k} - W'_{t+k}||_2 < mean gradient norm over the segment's m = k steps. Value and limit: worst segment.

    Accepts doing nothing: the mean gradient norm is many times the size of an honest update."""
    pairs = [(_l2(evidence, s), s.gradient_norm) for s in evidence.segments]
    known = [(d, g) for d, g in pairs if d is not None and g is not None]
    if not known:
        return None, None, "not-applicable", "no replayed segment has a distance and a gradient norm"
    distance, limit = max(known, key=lambda pair: pair[0] - pair[1])
    return distance, limit, passes(distance < limit or distance == 0.0), ""


def pev(evidence: Evidence) -> Outcome:
    """LAB 2.2, Probabilistic Epoch Validation. |L_e - L'_e| < sigma_e x 100 / N, for each epoch e that was drawn.

    L_e and sigma_e: mean and standard deviation of the epoch's logged losses; L'_e: mean loss of N % of the epoch's
    batches under its final checkpoint. Value and limit: the epoch closest to failing. At N = 10 the limit is ten sigma and
    passes a skipped epoch; at N = 50 honest early epochs fail, whose mean belongs to mid-epoch weights."""
    per_epoch = evidence.contract.facts.iterations_per_epoch
    worst: tuple[float, float, int] | None = None
    for found in evidence.replay.evaluations if evidence.replay else ():
        losses = evidence.losses[(found.epoch - 1) * per_epoch : found.epoch * per_epoch]
        if found.mean is None or len(losses) < 2 or not all(map(math.isfinite, losses)):
            continue
        difference = abs(statistics.fmean(losses) - found.mean)
        limit = statistics.pstdev(losses) * 100 / evidence.pev_percent
        if worst is None or difference - limit > worst[0] - worst[1]:
            worst = difference, limit, found.epoch
    if worst is None:
        return None, None, "not-applicable", "no epoch has finite losses and an evaluated checkpoint"
    return worst[0], worst[1], passes(worst[0] < worst[1]), f"epoch {worst[2]}, N = {evidence.pev_percent:g} %"


def _l2(evidence: Evidence, segment: SegmentReport) -> float | None:
    if evidence.reproduced(segment):
        return 0.0
    return segment.distances.l2 if segment.distances is not None else None
