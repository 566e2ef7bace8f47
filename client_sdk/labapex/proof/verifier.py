"""Verifies a proof folder: challenge, replay, judge, decide. The same rules as the platform's, for anybody, with nobody's help.

The challenge is drawn from the verifier's own randomness after the folder is fixed. Of a folder that a prover recorded
himself all states are at hand, so any segment may be drawn; of a platform's only the opened ones, and the verdict says so.
The script runs in a process of its own, which the caller provides as a `Replay`. No tensors here.
"""

from __future__ import annotations

import difflib
import itertools
import random
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field, ValidationError

from labapex.errors import NotJudgeable, UsageError
from labapex.proof import origins
from labapex.proof.challenge import Opening, draw
from labapex.proof.chunks import Measured
from labapex.proof.doubts import doubts, together
from labapex.proof.evidence import Further
from labapex.proof.folder import Proof, proof_root, train_seconds
from labapex.proof.policy import WEIGHTS, decide
from labapex.proof.rules import Evidence, blamed, judge, log_chain, log_count, replay_max_error, unjudged
from labapex.proof.runs import runs
from labapex.proof.shown import look
from labapex.proof.tolerance import Calibration, Line, Tolerance
from labapex.protocol.canonical import Message, digest, explain
from labapex.protocol.contract import Environment
from labapex.protocol.replay import ReplayReport, ReplayRequest
from labapex.protocol.states import Fault
from labapex.protocol.verdict import Cost, Origin, RuleResult, Verdict, Weight

WEIGHTS_RULE = "weights"
FORETELL_SECONDS = 600.0  # that a run without training may take


class AuditPolicy(Message):
    """How much a verifier looks at, and which rules decide for him."""

    audit_segments: int = Field(default=44, ge=1, le=100_000)  # 99 % sure to meet a false one where one in ten is false
    top_q: int = Field(default=1, ge=0, le=100)
    pev_percent: float = Field(default=10, gt=0, le=100)
    weights: dict[str, Weight] = Field(default_factory=dict)  # of single rules, in place of the usual ones
    line: Line | None = None  # the verifier's own, for work of another class of hosts, in place of a calibration


@dataclass(frozen=True)
class Replayed:
    """What came of a replay. `weights`: SHA-256 of the weights file that the final state gives, None where it gave none."""

    report: ReplayReport
    weights: str | None


Replay = Callable[[ReplayRequest], Replayed]
"""Runs the script in a confined process, with the states that the request's `digests` name. Raises `LabApexError`."""


def parse_policy(document: Any) -> AuditPolicy:
    """A policy from a loaded JSON document. Raises `UsageError` with the right spelling."""
    if not isinstance(document, dict):
        raise UsageError('a policy must be a JSON object, for example {"audit_segments": 20}')
    _known("field", document, AuditPolicy.model_fields)
    if isinstance(document.get("weights"), dict):
        _known("rule", document["weights"], [*WEIGHTS, WEIGHTS_RULE])
    try:
        return AuditPolicy.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain(error)) from None


def verify(
    proof: Proof,
    *,
    policy: AuditPolicy,
    random: random.Random,
    replay: Replay,
    calibration: Calibration | None = None,
) -> Verdict:
    """The verdict on a proof whose digests hold. `random` must be the verifier's own (`random.SystemRandom`).

    `calibration`: what honest work may differ by where another class of hosts has done it. Raises `NotJudgeable` where that
    is the case and there is no line, `LabApexError` where the replay could not take place: neither is evidence against
    the prover.
    """
    began = time.perf_counter()
    seen, opening, replayed = _evidence(proof, policy), None, None
    if log_chain(seen)[2] == log_count(seen)[2] == "pass":  # else there is nothing to draw from
        shown = look(proof, random)
        seen = replace(seen, measured=shown.measured, opening_problem=shown.problem)
        opening = _opening(proof, policy, random, shown.measured) if shown.problem is None else None
    if opening is not None and opening.indices:
        replayed = replay(_request(proof, opening).model_copy(update={"foretell": FORETELL_SECONDS}))
        seen = _replayed(seen, policy, opening, replayed, calibration)
        opening, replayed, seen = _doubted(proof, policy, opening, replayed, seen, replay, calibration)
    rules = [*judge(seen), _weights(proof, replayed)]
    rules = [rule.model_copy(update={"weight": policy.weights.get(rule.rule, rule.weight)}) for rule in rules]
    if (why := unjudged(seen, rules)) is not None:
        raise NotJudgeable(why)
    outcome, deciding, reason = decide(rules)
    return _verdict(proof, policy, opening, replayed, seen, rules, outcome, deciding, reason, began)


def _doubted(
    proof: Proof,
    policy: AuditPolicy,
    opening: Opening,
    replayed: Replayed,
    seen: Evidence,
    replay: Replay,
    calibration: Calibration | None,
) -> tuple[Opening, Replayed, Evidence]:
    """Further rounds, as long as there are doubts that the folder can answer."""
    drawn = len(opening.indices)
    for rounds in itertools.count():
        states = {index: proof.state_path(index) for index in opening.indices}
        found = doubts(seen, states, ends=True, rounds=rounds, states=len(states) - drawn)
        indices, segments = _answerable(proof, found)
        indices, segments = indices - states.keys(), segments - set(opening.segments)
        if not indices and not segments:
            break
        opening = replace(
            opening,
            indices=tuple(sorted({*opening.indices, *indices})),
            segments=tuple(sorted({*opening.segments, *segments})),
        )
        if segments:
            compare = tuple(sorted(s for s in segments if s + 1 in opening.indices))
            needed = {run.leaf for run in runs(segments, proof.states)} | {s + 1 for s in compare}
            more = Opening(tuple(sorted(needed)), tuple(sorted(segments)), (), compare)
            report = together(replayed.report, replay(_request(proof, more)).report)
            replayed = Replayed(report, replayed.weights)
        seen = _replayed(seen, policy, opening, replayed, calibration)
    return opening, replayed, seen


def _answerable(proof: Proof, found: Further) -> tuple[set[int], set[int]]:
    """What of a doubt a folder has states for. A recorded one that keeps few of them is replayed from one to the next where
    the state between them was asked for: that shows all of the leaves there."""
    here = sorted(proof.states)
    indices = set(found.indices & proof.states)
    if proof.manifest.origin == "platform":
        return indices, {segment for segment in found.segments if proof.contract.origin(segment) in proof.states}
    segments = set(found.segments)
    for index in found.indices - proof.states:
        place = bisect_right(here, index)
        segments.update(range(here[place - 1], here[place]))
    return indices, segments


def _opening(proof: Proof, policy: AuditPolicy, random: random.Random, measured: Measured | None) -> Opening:
    """What is looked at: drawn from a recorded folder's states, or from what a platform had opened."""
    full = draw(
        proof.contract,
        proof.leaves,
        measured=measured,
        audit_segments=policy.audit_segments,
        top_q=policy.top_q,
        pev_percent=policy.pev_percent,
        random=random,
        ends=True,
    )
    here = proof.states
    evaluations = tuple(e for e in full.evaluations if e.leaf in here)
    if proof.manifest.origin == "recorded":
        needed = {run.leaf for run in runs(full.segments, here)} | (here & set(full.indices))
        compare = tuple(s for s in full.compare if s + 1 in here)
        return replace(full, indices=tuple(sorted(needed)), evaluations=evaluations, compare=compare)
    last = len(proof.leaves) - 1
    passed = (
        {*proof.asked.segments, *proof.asked.further_segments}
        if proof.asked and proof.contract.handovers
        else set[int]()
    )
    candidates = sorted((here | {s for s in passed if proof.contract.origin(s) in here}) - {last})
    segments = sorted(random.sample(candidates, min(policy.audit_segments, len(candidates))))
    return Opening(
        indices=tuple(sorted(here)),
        segments=tuple(segments),
        evaluations=evaluations,
        compare=tuple(s for s in segments if s + 1 in here),
    )


def _request(proof: Proof, opening: Opening) -> ReplayRequest:
    return ReplayRequest(
        contract=proof.contract,
        segments=opening.segments,
        compare=opening.compare,
        evaluations=opening.evaluations,
        digests={index: proof.leaves[index].state for index in opening.indices},
    )


def _evidence(proof: Proof, policy: AuditPolicy) -> Evidence:
    """What the folder says, before anything in it was looked at."""
    return Evidence(
        contract=proof.contract,
        losses=proof.losses,
        times=proof.times,
        samples=(),
        leaves=proof.leaves,
        leaf_received_at=(),
        chain_problem=None,
        replay=None,
        opening_problem=None,
        worker_environment=proof.environment,
        verifier_environment=None,
        top_q=policy.top_q,
        pev_percent=policy.pev_percent,
    )


def _replayed(
    seen: Evidence, policy: AuditPolicy, opening: Opening, replayed: Replayed, calibration: Calibration | None
) -> Evidence:
    here = replayed.report.environment
    return replace(
        seen,
        replay=replayed.report,
        verifier_environment=here,
        asked=opening.segments,
        tolerance=_tolerance(seen, policy, here, calibration),
    )


def _tolerance(
    seen: Evidence, policy: AuditPolicy, here: Environment | None, calibration: Calibration | None
) -> Tolerance:
    if policy.line is not None:
        return Tolerance(own=policy.line, source="the line is the verifier's own")
    if calibration is None:
        return Tolerance()
    return calibration.tolerance(seen.worker_environment, here, seen.contract.checkpoint_every)


def _weights(proof: Proof, replayed: Replayed | None) -> RuleResult:
    """The weights that are handed over are those of the committed final state. Value: equal or different."""
    result: Literal["pass", "fail", "not-applicable"]
    claimed, made = proof.weights, replayed.weights if replayed else None
    if replayed is None or claimed is None:
        value, result, detail = None, "not-applicable", "there are no weights to compare" if replayed else "no replay"
    else:
        equal = claimed == made
        value, result = ("equal", "pass") if equal else ("different", "fail")
        detail = "" if equal else "the weights are not those that the committed final state gives"
    return RuleResult(
        rule=WEIGHTS_RULE, value=value, limit="equal", result=result, weight=Weight.DECIDES, detail=detail
    )


def _verdict(
    proof: Proof,
    policy: AuditPolicy,
    opening: Opening | None,
    replayed: Replayed | None,
    seen: Evidence,
    rules: list[RuleResult],
    outcome: Literal["verified", "rejected"],
    deciding: str | None,
    reason: str,
    began: float,
) -> Verdict:
    contract, verified = proof.contract, outcome == "verified"
    opened = opening.indices if opening and replayed else ()
    sizes = [leaf.size for leaf in proof.leaves]
    return Verdict(
        job=contract.job,
        lease=contract.lease,
        verdict=outcome,
        deciding_rule=deciding,
        reason=reason,
        fault=Fault.NOBODY if verified else Fault.WORKER,
        blamed=None if deciding is None else blamed(seen, deciding).lease,
        epochs=contract.epochs,
        iterations_per_epoch=contract.facts.iterations_per_epoch,
        loss_logs=len(proof.losses),
        verified_epochs=contract.counted if verified else 0,
        rules=tuple(rules),
        replay_max_error=replay_max_error(seen),
        detection=detection(proof, policy, opening),
        origin=_origin(proof, policy, opening, replayed),
        contract=digest(contract),
        proof_root=proof_root(proof.leaves),
        weights=proof.weights if verified else None,
        worker_environment=proof.environment,
        verifier_environment=seen.verifier_environment,
        cost=Cost(
            verify_seconds=time.perf_counter() - began,
            train_seconds=train_seconds(proof.times),
            opened_bytes=sum(sizes[index] for index in opened),
            all_checkpoint_bytes=sum(sizes),
            opened_states=len(opened),
            segments_replayed=len(replayed.report.segments) if replayed else 0,
        ),
        issued_at=time.time(),
    )


def detection(proof: Proof, policy: AuditPolicy, opening: Opening | None) -> str:
    """What the choice of segments proves, in words: a share f of false ones survives c draws with (1 - f)^c."""
    count = max(0, len(proof.leaves) - 1)
    if opening is None:
        return "nothing was drawn: the log or what was to be shown is not whole"
    if len(opening.segments) == count:
        return f"all {count} segments were replayed: any false one is caught"
    if proof.manifest.origin == "platform":
        return (
            f"{len(opening.segments)} of {count} segments were replayed, of those that the platform had opened; what "
            "stayed closed cannot be replayed from this folder, and that a platform drew them is its signature's word alone"
        )
    caught = origins.caught(policy.audit_segments, count)
    return (
        f"{policy.audit_segments} of {count} segments were drawn at random, besides first, last and the largest"
        f" updates: where one in ten is false, that is caught with a probability of {caught:.0%}"
    )


def _origin(proof: Proof, policy: AuditPolicy, opening: Opening | None, replayed: Replayed | None) -> Origin:
    """Of a platform's folder: the segments that it says it drew by chance, as far as they were replayed again."""
    count, drawn = max(1, len(proof.leaves) - 1), 0
    if replayed is not None and opening is not None:
        drawn = count if len(opening.segments) == count else policy.audit_segments
        if proof.manifest.origin == "platform" and drawn < count:
            drawn = min(drawn, len(opening.segments), proof.asked.audit_segments if proof.asked else 0)
    return origins.origin(proof.contract, replayed.report.start if replayed else None, drawn=drawn, segments=count)


def _known(what: str, given: dict[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"
            raise UsageError(f"unknown {what} {str(key)!r} in the policy{hint}")
