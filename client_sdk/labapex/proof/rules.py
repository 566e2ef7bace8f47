"""The rules by which a run is judged: pure functions from evidence to results. No tensors, no I/O, no clock.

Sources: LAB = "Ensuring Verifiable and Secure Outsourced Training of Deep Neural Networks" (Lab Apex, 2023); JIA = Jia et
al., "Proof-of-Learning: Definitions and Practice", IEEE S&P 2021. Their rules stand under their own names with their own
formulas; what those cannot see is said at each, and closed by ours. Which rule decides stands in `policy`.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from labapex.proof.challenge import largest_updates
from labapex.proof.evidence import Evidence as Evidence
from labapex.proof.evidence import Outcome, passes
from labapex.proof.policy import weight
from labapex.proof.signs import gpu_memory, gpu_utilisation, pace
from labapex.protocol.canonical import digest
from labapex.protocol.records import column, uncolumn
from labapex.protocol.replay import SegmentReport
from labapex.protocol.verdict import RuleResult

DELTA = 0.01  # JIA VI-C: two magnitudes below the reference distance
RELATIVE_DELTA = 0.02  # between different classes of hosts, k <= 5, moderate learning rate
NORM_TOLERANCE = 1e-6  # relative: a sum of squares may be taken in another order
_NOTHING = hashlib.sha256(b"").hexdigest()  # `Leaf.batches` of the first leaf
POINT_LOSS_DELTA = 1e-6  # between different classes of hosts, relative to the loss


def judge(evidence: Evidence) -> list[RuleResult]:
    """Every rule's result, in the order in which they decide."""
    results = []
    for name, rule in RULES.items():
        value, limit, result, detail = rule(evidence)
        results.append(
            RuleResult(rule=name, value=value, limit=limit, result=result, weight=weight(name), detail=detail)
        )
    return results


def replay_max_error(evidence: Evidence) -> float | None:
    """The largest relative error of the replayed segments: 0.0 where every digest was equal; None where it is not known."""
    if evidence.replay is None or not evidence.replay.segments:
        return None
    errors = [_relative_error(evidence, s) for s in evidence.replay.segments]
    known = [e for e in errors if e is not None]
    return max(known) if len(known) == len(errors) else None


def opening(evidence: Evidence) -> Outcome:
    """Ours. Every state that the challenge asked for came in time and hashes to its leaf. Value: states that did not."""
    if evidence.opening_problem is not None:
        return (
            evidence.opening_problem,
            "opened in time",
            "fail",
            "states were withheld; what is not shown counts as false",
        )
    if evidence.replay is None:
        return None, None, "not-applicable", "nothing was opened"
    wrong = evidence.replay.mismatched
    detail = f"the states of leaves {_few(wrong)} are not those that were committed" if wrong else ""
    return float(len(wrong)), 0.0, passes(not wrong), detail


def log_chain(evidence: Evidence) -> Outcome:
    """Ours. Frames and leaves are unbroken hash chains from the contract to the signed end, and leaves fit the losses.

    Value: "unbroken" or what is broken. Cannot see whether what was logged is true."""
    problem = evidence.chain_problem or _leaf_chain_problem(evidence)
    return problem or "unbroken", "unbroken", passes(problem is None), ""


def _leaf_chain_problem(evidence: Evidence) -> str | None:
    steps = evidence.contract.leaf_steps()
    if [leaf.step for leaf in evidence.leaves] != steps:
        return f"{len(evidence.leaves)} leaves, {len(steps)} are due"
    prev, at = digest(evidence.contract), 0
    for index, leaf in enumerate(evidence.leaves):
        if leaf.index != index or leaf.prev != prev:
            return f"leaf {index} does not follow the one before it"
        if leaf.losses != _losses_digest(evidence.losses[at : leaf.step]):
            return f"leaf {index} commits to other losses than were logged"
        prev, at = leaf.digest(), leaf.step
    if any(b < a for a, b in pairwise(evidence.leaf_received_at)):
        return "leaves were received out of order"
    return None


def log_count(evidence: Evidence) -> Outcome:
    """LAB 2.1. N = E x I, with I from the preflight. Cannot see whether a logged iteration took place."""
    n, due = len(evidence.losses), evidence.contract.iterations
    detail = (
        ""
        if n == due
        else f"{evidence.contract.epochs} epochs of {evidence.contract.facts.iterations_per_epoch} are due"
    )
    return float(n), float(due), passes(n == due), detail


def uniqueness(evidence: Evidence) -> Outcome:
    """Ours. No state is one that another lease had committed to before. Value: leaves with such a state; limit 0.

    Under another seed every state is another one, where the initial parameters follow from the seed (d_ref > 0); other
    scripts are not looked at. A state that the replay reached itself is honest wherever else it occurs, and one that is no
    longer finite says nothing. Cannot see a copy that was changed in one bit, nor runs that were never committed here."""
    report = evidence.replay
    if evidence.known is None:
        return None, 0.0, "not-applicable", "no other leases' states are at hand"
    if report is None or not report.reference_distance:
        return None, 0.0, "not-applicable", "it is not known that the script's start follows from its seed"
    reached = {report.initial_state} | {s.state for s in report.segments}
    copied = [
        leaf.index
        for leaf in evidence.leaves
        if leaf.state in evidence.known and leaf.state not in reached and leaf.update_norm is not None
    ]
    detail = f"leaves {_few(copied)} are states that another lease had committed to before" if copied else ""
    return float(len(copied)), 0.0, passes(not copied), detail


def initialisation(evidence: Evidence) -> Outcome:
    """JIA V-4, made exact. The first leaf is the state that follows from the lease's seed. Value: equal or different.

    The statistical test of the paper is for proofs without a seed; here nothing is left to chance."""
    if evidence.replay is None or evidence.replay.initial_state is None or not evidence.leaves:
        return None, "equal", "not-applicable", "the initial state was not recomputed"
    equal = evidence.leaves[0].state == evidence.replay.initial_state
    detail = "" if equal else "the run did not start from the state that the lease's seed gives"
    return "equal" if equal else "different", "equal", passes(equal), detail


def batch_order(evidence: Evidence) -> Outcome:
    """JIA V. Batch index digests of every leaf equal those that follow from the seed. Value: leaves that differ.

    Cannot see whether the batches' content was used. A script without a DataLoader has no indices; its batches follow
    from the same seed and are compared where segments are replayed."""
    report = evidence.replay
    if report is None:
        return None, 0.0, "not-applicable", "nothing was replayed"
    if report.batches is None:
        wrong = [s.leaf for s in report.segments if not _leaf_is(evidence, s.leaf + 1, batches=s.batches)]
        if not evidence.contract.facts.has_loader and not wrong:
            return (
                None,
                0.0,
                "not-applicable",
                "no DataLoader; the order follows from the seed wherever it was replayed",
            )
    else:
        due = report.batches
        if len(due) != len(evidence.leaves) - 1:
            return float(len(due)), float(len(evidence.leaves) - 1), "fail", "the order was derived for another run"
        wrong = [n for n, batches in enumerate(due) if not _leaf_is(evidence, n + 1, batches=batches)]
    detail = f"leaves {_few([n + 1 for n in wrong])} commit to other batches than the seed gives" if wrong else ""
    return float(len(wrong)), 0.0, passes(not wrong), detail


def point_loss(evidence: Evidence) -> Outcome:
    """Ours. |logged - recomputed| loss of single iterations, at committed weights, exact batch and randomness.

    Every iteration of a segment whose replay ends in the committed state, or between equal classes, must agree exactly;
    else the first of each segment, relatively.
    Value: the largest difference. Unit: that of the loss. Cannot see iterations that were not drawn."""
    report = evidence.replay
    if report is None or not report.segments:
        return None, 0.0, "not-applicable", "nothing was replayed"
    steps = evidence.contract.leaf_steps()
    limit = 0.0 if evidence.one_class else POINT_LOSS_DELTA
    worst = (False, 0.0, -1, limit)  # too large, the difference, its iteration, its limit
    for segment in report.segments:
        start, stop = (steps[segment.leaf], steps[segment.leaf + 1]) if 0 <= segment.leaf < len(steps) - 1 else (0, 0)
        if (segment.start, segment.stop) != (start, stop) or start == stop:
            return None, 0.0, "fail", f"segment {segment.leaf} of the replay is none of this run"
        logged = list(evidence.losses[start:stop])
        recomputed = uncolumn(segment.losses)
        exact = evidence.one_class or _leaf_is(evidence, segment.leaf + 1, state=segment.state)
        if not exact:
            logged, recomputed = logged[:1], recomputed[:1]
        if len(logged) != len(recomputed):
            return float(len(recomputed)), float(len(logged)), "fail", f"iterations {segment.start} to {segment.stop}"
        for step, (a, b) in enumerate(zip(logged, recomputed, strict=True), start=segment.start):
            difference = _difference(a, b) / (1.0 if exact else max(1.0, abs(a)))
            allowed = 0.0 if exact else limit
            if difference:
                worst = max(worst, (difference > allowed, difference, step, allowed))
    too_large, value, where, limit = worst
    return _finite(value), limit, passes(not too_large), f"largest at iteration {where}" if where >= 0 else ""


def replay(evidence: Evidence) -> Outcome:
    """Ours. Random, largest, first and last segments run again from their committed start, every state entry compared.

    Between equal classes: digests are equal; value: segments that differ, limit 0. Else: relative error
    ||W' - W|| / ||W - W_start|| of the worst segment against a line; 1 is what doing nothing yields."""
    report = evidence.replay
    if report is None:
        return None, 0.0, "not-applicable", "nothing was replayed"
    missing = sorted(set(evidence.asked) - {s.leaf for s in report.segments})
    if report.problem is not None or missing or not report.segments:
        detail = report.problem or f"segments {_few(missing)} could not be replayed"
        return float(len(missing)), 0.0, "fail", detail[-1000:]
    wrong = [s for s in report.segments if not _leaf_is(evidence, s.leaf + 1, state=s.state)]
    if evidence.one_class or not wrong:
        detail = (
            f"segments {_few([s.leaf for s in wrong])} end in another state than the committed one" if wrong else ""
        )
        return float(len(wrong)), 0.0, passes(not wrong), detail
    errors = [_relative_error(evidence, s) for s in report.segments]
    known = [e for e in errors if e is not None]
    worst = max(known, default=math.inf) if len(known) == len(errors) else math.inf
    detail = "worker and verifier are of different classes; the line is not calibrated for this pair"
    return _finite(worst), RELATIVE_DELTA, passes(worst <= RELATIVE_DELTA), detail


def leaf_claims(evidence: Evidence) -> Outcome:
    """Ours. What leaves say beside their states: norms of updates that were replayed exactly, and all of the first leaf.

    An understated norm would hide a segment from `replay-top-q`. Value: leaves that say something else. Cannot see the
    norms of segments that were not replayed."""
    if not evidence.leaves or evidence.replay is None:
        return None, 0.0, "not-applicable", "nothing was replayed"
    first = evidence.leaves[0]
    wrong = [] if first.update_norm == 0.0 and first.batches == _NOTHING else [0]
    for segment in evidence.replay.segments:
        if _leaf_is(evidence, segment.leaf + 1, state=segment.state):
            claimed = evidence.leaves[segment.leaf + 1].update_norm
            if not _near(claimed, segment.update_norm):
                wrong.append(segment.leaf + 1)
    detail = f"leaves {_few(wrong)} claim other updates than those that took place" if wrong else ""
    return float(len(wrong)), 0.0, passes(not wrong), detail


def replay_top_q(evidence: Evidence) -> Outcome:
    """JIA Algorithm 2. Distance of the Q largest updates of each epoch, l2 over d_ref, against delta = 0.01.

    Accepts doing nothing: d_ref is dominated by the initial weights. Blind to a worker that makes just Q segments real."""
    largest = largest_updates(evidence.contract, evidence.leaves, evidence.top_q) if evidence.leaves else set()
    picked = [s for s in _segments(evidence) if s.leaf in largest]
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
    pairs = [(_l2(evidence, s), s.gradient_norm) for s in _segments(evidence)]
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


RULES: dict[str, Callable[[Evidence], Outcome]] = {
    "opening": opening,
    "log-chain": log_chain,
    "log-count": log_count,
    "uniqueness": uniqueness,
    "initialisation": initialisation,
    "batch-order": batch_order,
    "point-loss": point_loss,
    "replay": replay,
    "leaf-claims": leaf_claims,
    "replay-top-q": replay_top_q,
    "vmo": vmo,
    "pev": pev,
    "pace": pace,
    "gpu-utilisation": gpu_utilisation,
    "gpu-memory": gpu_memory,
}


def _segments(evidence: Evidence) -> Sequence[SegmentReport]:
    return evidence.replay.segments if evidence.replay is not None else ()


def _leaf_is(evidence: Evidence, index: int, *, state: str | None = None, batches: str | None = None) -> bool:
    if not 0 <= index < len(evidence.leaves):
        return False
    leaf = evidence.leaves[index]
    return (state is None or leaf.state == state) and (batches is None or leaf.batches == batches)


def _relative_error(evidence: Evidence, segment: SegmentReport) -> float | None:
    if _leaf_is(evidence, segment.leaf + 1, state=segment.state):
        return 0.0
    return segment.distances.relative if segment.distances is not None else None


def _l2(evidence: Evidence, segment: SegmentReport) -> float | None:
    if _leaf_is(evidence, segment.leaf + 1, state=segment.state):
        return 0.0
    return segment.distances.l2 if segment.distances is not None else None


def _near(claimed: float | None, found: float | None) -> bool:
    if claimed is None or found is None:
        return claimed is found
    return math.isclose(claimed, found, rel_tol=NORM_TOLERANCE, abs_tol=0.0)


def _difference(a: float, b: float) -> float:
    """|a - b|; 0 for two equal non-finite losses, infinite where only one of them is finite."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    difference = abs(a - b)
    return difference if math.isfinite(difference) else math.inf


def _losses_digest(losses: Sequence[float]) -> str:
    return hashlib.sha256(column(list(losses))).hexdigest()


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "not finite"


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
