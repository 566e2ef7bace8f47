"""The rules by which a run is judged: pure functions from evidence to results. No tensors, no I/O, no clock.

Here are those on what was committed and replayed, and the table of all. The sources' own rules stand in `published`. Which rule
decides stands in `policy`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from labapex.proof import chunks
from labapex.proof.evidence import Evidence as Evidence
from labapex.proof.evidence import Outcome, passes
from labapex.proof.foretold import skeleton
from labapex.proof.orders import batch_order
from labapex.proof.origins import initialisation_ks, provenance
from labapex.proof.policy import weight
from labapex.proof.published import pev, replay_top_q, vmo
from labapex.proof.signs import gpu_agreement, gpu_load, gpu_memory, gpu_utilisation, pace
from labapex.proof.tolerance import Line, described, loss_difference, loss_error, segment_error, start_error
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Stint
from labapex.protocol.records import column, uncolumn
from labapex.protocol.replay import SegmentReport
from labapex.protocol.verdict import RuleResult, Weight

NORM_TOLERANCE = 1e-6  # relative: a sum of squares may be taken in another order
_EXACT = Line(start=0, error=0, loss=0)
_NO_LINE = "worker and verifier are of different classes, and there is no line to judge this by"
STINT = ("opening", "uniqueness", "initialisation", "batch-order", "point-loss", "replay", "leaf-claims")
_NOTHING = hashlib.sha256(b"").hexdigest()  # `Leaf.batches` of the first leaf


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


def stint_problem(evidence: Evidence) -> str | None:
    """What is wrong with the beginning of a run, of which `evidence` has leaves and losses up to some leaf; None where it holds.

    By the rules that decide and need no more of a run than what was replayed. That the log is a chain was seen when it came."""
    found = {result.rule: result for result in judge(evidence) if result.rule in STINT}
    wrong = next((result for result in found.values() if result.result == "fail"), None)
    if wrong is None and found["replay"].result != "pass":
        wrong = found["replay"]
    return None if wrong is None else f"{wrong.rule}: {wrong.detail or f'found {wrong.value}, required {wrong.limit}'}"


def first_false(evidence: Evidence) -> int | None:
    """The first segment of the replayed ones that is not what was logged and committed to; None where all are."""
    wrong = [index - 1 for index in (evidence.replay.mismatched if evidence.replay else ())]
    for segment in evidence.segments:
        start, stop, end = segment.start, segment.stop, segment.leaf + 1
        leaf = evidence.leaves[end] if 0 < end < len(evidence.leaves) else None
        same = leaf is not None and evidence.reproduced(segment) and segment.batches == leaf.batches
        if not same or column(list(evidence.losses[start:stop])) != segment.losses:
            wrong.append(segment.leaf)
    return max(0, min(wrong)) if wrong else None


def blamed(evidence: Evidence, rule: str) -> Stint:
    """Whose part of a run `rule` decided against. What was not shown, and how the log ends, is the last host's matter."""
    contract, segment = evidence.contract, None
    if rule == "initialisation":
        segment = 0
    elif evidence.opening_problem is None:
        segment = first_false(evidence)
        if segment is None and rule == "leaf-claims" and evidence.measured is not None:
            segment = (
                min(chunks.understated(evidence.leaves, evidence.measured, tolerance=NORM_TOLERANCE), default=1) - 1
            )
        elif segment is None and rule == "uniqueness" and (copied := _copied(evidence)):
            segment = max(0, copied[0] - 1)
    return contract.stints()[-1] if segment is None else contract.stint_of(segment)


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
    for handover in evidence.contract.handovers:
        if handover.leaf not in evidence.leaves[handover.leaf.index : handover.leaf.index + 1]:
            return f"the run was handed over behind another leaf {handover.leaf.index}"
    prev, at = digest(evidence.contract.first), 0
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
    """LAB 2.1. N = E x I, with I from the preflight, and E the epochs that count.

    Cannot see whether a logged iteration took place."""
    n, due = len(evidence.losses), evidence.contract.until
    detail = (
        ""
        if n == due
        else f"{evidence.contract.counted} epochs of {evidence.contract.facts.iterations_per_epoch} are due"
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
    copied = _copied(evidence)
    detail = f"leaves {_few(copied)} are states that another lease had committed to before" if copied else ""
    return float(len(copied)), 0.0, passes(not copied), detail


def _copied(evidence: Evidence) -> list[int]:
    """Leaves whose states others had committed to before and that no replay reached."""
    report = evidence.replay
    reached = {report.initial_state} | {s.state for s in report.segments} if report is not None else set()
    return [
        leaf.index
        for leaf in evidence.leaves
        if leaf.state in (evidence.known or ()) and leaf.state not in reached and leaf.update_norm is not None
    ]


def initialisation(evidence: Evidence) -> Outcome:
    """JIA V-4, made exact. The first leaf is the state that follows from the lease's seed. Value: equal or different;
    between different classes ||S' - S|| / ||S||, where the two differ at all.

    The statistical test of the paper, `initialisation-ks`, is for proofs without a seed; here nothing is left to chance."""
    if evidence.replay is None or evidence.replay.initial_state is None or not evidence.leaves:
        return None, "equal", "not-applicable", "the initial state was not recomputed"
    equal = evidence.leaves[0].state == evidence.replay.initial_state
    if not equal and not evidence.one_class:
        line, error = evidence.tolerance.line(0, evidence.contract.iterations), evidence.replay.start_error
        if isinstance(line, str) or not _opened(evidence, 0):
            return None, None, "not-applicable", _NO_LINE
        error = math.inf if error is None else error
        return _finite(error), line.start, passes(error <= line.start), evidence.tolerance.source
    detail = "" if equal else "the run did not start from the state that the lease's seed gives"
    return "equal" if equal else "different", "equal", passes(equal), detail


def point_loss(evidence: Evidence) -> Outcome:
    """Ours. |logged - recomputed| loss of every replayed iteration, at committed weights, exact batch and randomness.

    Limit 0; between different classes, where a segment does not end in the committed state, the line of its phase over
    |logged - recomputed| / max(1, |logged|). Value: the largest, of what is closest to its limit or farthest beyond.
    Unit: that of the loss. Cannot see iterations that were not drawn, nor what stays below such a line."""
    report = evidence.replay
    if report is None or not report.segments:
        return None, 0.0, "not-applicable", "nothing was replayed"
    steps = evidence.contract.leaf_steps()
    worst = (False, 0.0, 0.0, -1, 0.0)  # too large, share of the limit, the difference, its iteration, its limit
    unjudged = False
    for segment in report.segments:
        start, stop = (steps[segment.leaf], steps[segment.leaf + 1]) if 0 <= segment.leaf < len(steps) - 1 else (0, 0)
        if (segment.start, segment.stop) != (start, stop) or start == stop:
            return None, 0.0, "fail", f"segment {segment.leaf} of the replay is none of this run"
        logged, recomputed = evidence.losses[start:stop], uncolumn(segment.losses)
        if len(logged) != len(recomputed):
            return float(len(recomputed)), float(len(logged)), "fail", f"iterations {segment.start} to {segment.stop}"
        line = _line(evidence, segment)
        if line is None:
            unjudged = True
            continue
        limit = line.loss
        for step, (a, b) in enumerate(zip(logged, recomputed, strict=True), start=start):
            difference = loss_error([a], [b]) if limit else loss_difference(a, b)
            if difference:
                worst = max(worst, (difference > limit, _share(difference, limit), difference, step, limit))
    too_large, _, value, where, limit = worst
    if unjudged and not too_large:
        return None, None, "not-applicable", _NO_LINE
    return _finite(value), limit, passes(not too_large), f"largest at iteration {where}" if where >= 0 else ""


def replay(evidence: Evidence) -> Outcome:
    """Ours. Random, largest, first and last segments run again from their committed start, every state entry compared.

    Between equal classes: digests are equal; value: segments that differ, limit 0. Else: ||S' - S|| / ||S - S_start|| of a
    segment's end, of the parameters or of all else, against the line of its phase; 1 is what doing nothing yields, and what
    is not of floating point must be equal. Value and limit: of the segment closest to its line or farthest beyond."""
    report = evidence.replay
    if report is None:
        return None, 0.0, "not-applicable", "nothing was replayed"
    missing = sorted(set(evidence.asked) - {s.leaf for s in report.segments})
    if report.problem is not None or missing or not report.segments:
        detail = report.problem or f"segments {_few(missing)} could not be replayed"
        return float(len(missing)), 0.0, "fail", detail[-1000:]
    wrong = [s for s in report.segments if not evidence.reproduced(s)]
    gap = _gap(evidence)
    if evidence.one_class or not (wrong or gap):
        detail = (
            f"segments {_few([s.leaf for s in wrong])} end in another state than the committed one" if wrong else ""
        )
        return float(len(wrong)), 0.0, passes(not wrong), detail
    lines = [(s, _line(evidence, s)) for s in wrong]
    judged = [(_error(evidence, s), line.error, s) for s, line in lines if line is not None]
    error, limit, segment = max(judged, key=lambda each: _share(*each[:2]), default=(0.0, 0.0, report.segments[0]))
    if error <= limit and gap is not None:
        return None, None, "not-applicable", _NO_LINE
    detail = f"worker and verifier are of different classes; {evidence.tolerance.source}"
    return _finite(error), limit, passes(error <= limit), f"segment {segment.leaf}; {detail}"


def unjudged(evidence: Evidence, results: Sequence[RuleResult]) -> str | None:
    """Why there is no verdict, in words: the classes differ, so does what came out, and there is no line to judge it by.

    None where there is a verdict: also where another rule has already decided against the run."""
    why = _gap(evidence)
    if why is None or any(r.weight is Weight.DECIDES and r.result == "fail" for r in results):
        return None
    return (
        "this host is of another class than the one that trained, so that honest work differs too, and"
        f" {why}. Trained on {described(evidence.worker_environment)}; here: {described(evidence.verifier_environment)}."
        " Verify on a host of that class, or calibrate"
    )


def _gap(evidence: Evidence) -> str | None:
    """Why something that differs between two classes has no line; None where all has one, or nothing differs."""
    report = evidence.replay
    if report is None or evidence.one_class:
        return None
    begun = not evidence.leaves or start_error(evidence.leaves[0], report) == 0.0
    differ = [s for s in report.segments if not evidence.reproduced(s)]
    steps = [*([] if begun else [0]), *(s.start for s in differ)]
    lines = [evidence.tolerance.line(step, evidence.contract.iterations) for step in steps]
    why = next((line for line in lines if isinstance(line, str)), None)
    if why is None and (not all(map(_measured, differ)) or not (begun or _opened(evidence, 0))):
        why = "not all states were opened that it would have to be compared with"
    return why


def leaf_claims(evidence: Evidence) -> Outcome:
    """Ours. What leaves say beside their states: norms of updates, settings of optimizers and sizes of trees where a segment
    was replayed exactly, and what the first leaf says of the time before it; and everywhere that no claimed norm is below
    the change of the one chunk that every state showed.

    Value: leaves that say something else. Cannot see an understated norm where nothing was replayed and the chunk's own
    change is small."""
    if evidence.measured is not None:
        small = chunks.understated(evidence.leaves, evidence.measured, tolerance=NORM_TOLERANCE)
        if small:
            detail = f"leaves {_few(small)} claim smaller updates than one chunk of the parameters alone shows"
            return float(len(small)), 0.0, "fail", detail
    if not evidence.leaves or evidence.replay is None:
        return None, 0.0, "not-applicable", "nothing was replayed"
    first, found = evidence.leaves[0], evidence.replay
    began = first.update_norm == 0.0 and first.batches == _NOTHING
    if first.state == found.initial_state:
        began &= (first.chunks, first.settings) == (found.initial_chunks, found.initial_settings)
    wrong = [] if began else [0]
    for segment in evidence.replay.segments:
        if evidence.reproduced(segment):
            claimed = evidence.leaves[segment.leaf + 1]
            same = (claimed.chunks, claimed.settings) == (segment.chunks, segment.settings)
            if not same or not _near(claimed.update_norm, segment.update_norm):
                wrong.append(segment.leaf + 1)
    detail = f"leaves {_few(wrong)} claim other updates or settings than those that took place" if wrong else ""
    return float(len(wrong)), 0.0, passes(not wrong), detail


RULES: dict[str, Callable[[Evidence], Outcome]] = {
    "opening": opening,
    "log-chain": log_chain,
    "log-count": log_count,
    "uniqueness": uniqueness,
    "initialisation": initialisation,
    "batch-order": batch_order,
    "skeleton": skeleton,
    "point-loss": point_loss,
    "replay": replay,
    "leaf-claims": leaf_claims,
    "provenance": provenance,
    "initialisation-ks": initialisation_ks,
    "replay-top-q": replay_top_q,
    "vmo": vmo,
    "pev": pev,
    "pace": pace,
    "gpu-utilisation": gpu_utilisation,
    "gpu-memory": gpu_memory,
    "gpu-agreement": gpu_agreement,
    "gpu-load": gpu_load,
}


def _opened(evidence: Evidence, leaf: int) -> bool:
    return any(segment.leaf == leaf for segment in evidence.segments)


def _line(evidence: Evidence, segment: SegmentReport) -> Line | None:
    """What a segment is judged by. None: between different classes, its phase has no line or its end was not opened."""
    if evidence.one_class or evidence.reproduced(segment):
        return _EXACT
    line = evidence.tolerance.line(segment.start, evidence.contract.iterations)
    return line if isinstance(line, Line) and _measured(segment) else None


def _measured(segment: SegmentReport) -> bool:
    """Whether it was run from its own committed start, and its end compared with the committed one."""
    return segment.distances is not None and segment.origin is None


def _share(value: float, limit: float) -> float:
    return value / limit if limit else math.inf if value else 0.0


def _error(evidence: Evidence, segment: SegmentReport) -> float:
    inside = 0 <= segment.leaf + 1 < len(evidence.leaves)
    error = segment_error(segment, evidence.leaves[segment.leaf + 1]) if inside else None
    return math.inf if error is None else error


def _relative_error(evidence: Evidence, segment: SegmentReport) -> float | None:
    if evidence.reproduced(segment):
        return 0.0
    return segment.distances.relative if segment.distances is not None else None


def _near(claimed: float | None, found: float | None) -> bool:
    if claimed is None or found is None:
        return claimed is found
    return math.isclose(claimed, found, rel_tol=NORM_TOLERANCE, abs_tol=0.0)


def _losses_digest(losses: Sequence[float]) -> str:
    return hashlib.sha256(column(list(losses))).hexdigest()


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "not finite"


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
