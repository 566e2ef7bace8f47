"""Verifies a proof folder: challenge, replay, judge, decide. The same rules as the platform's, for anybody, with nobody's help.

The challenge is drawn from the verifier's own randomness after the folder is fixed. Of a folder that a prover recorded
himself all states are at hand, so any segment may be drawn; of a platform's only the opened ones, and the verdict says so.
The script runs in a process of its own, which the caller provides as a `Replay`. No tensors here.
"""

from __future__ import annotations

import difflib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from labapex.errors import LabApexError, UsageError
from labapex.proof.challenge import Opening, draw
from labapex.proof.folder import Proof, proof_root, train_seconds
from labapex.proof.policy import WEIGHTS, decide
from labapex.proof.rules import Evidence, judge, log_chain, log_count, replay_max_error
from labapex.protocol.canonical import Message, digest, explain
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf, uncolumn
from labapex.protocol.replay import Distances, ReplayReport, ReplayRequest, SegmentReport
from labapex.protocol.states import Fault
from labapex.protocol.verdict import Cost, RuleResult, Verdict, Weight

WEIGHTS_RULE = "weights"


class AuditPolicy(Message):
    """How much a verifier looks at, and which rules decide for him."""

    audit_segments: int = Field(default=44, ge=1, le=100_000)  # 99 % sure to meet a false one where one in ten is false
    top_q: int = Field(default=1, ge=0, le=100)
    pev_percent: float = Field(default=10, gt=0, le=100)
    weights: dict[str, Weight] = Field(default_factory=dict)  # of single rules, in place of the usual ones


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


def verify(proof: Proof, *, policy: AuditPolicy, random: random.Random, replay: Replay) -> Verdict:
    """The verdict on a proof whose digests hold. `random` must be the verifier's own (`random.SystemRandom`).

    Raises `LabApexError` where the replay could not take place, which is no evidence against the prover.
    """
    began = time.perf_counter()
    opening = _opening(proof, policy, random)
    replayed = None
    if opening is not None and opening.indices:
        replayed = replay(_request(proof, opening))
    seen = _evidence(proof, policy, opening, replayed)
    rules = [*judge(seen), _weights(proof, replayed)]
    rules = [rule.model_copy(update={"weight": policy.weights.get(rule.rule, rule.weight)}) for rule in rules]
    outcome, deciding, reason = decide(rules)
    return _verdict(proof, policy, opening, replayed, seen, rules, outcome, deciding, reason, began)


def _opening(proof: Proof, policy: AuditPolicy, random: random.Random) -> Opening | None:
    """What is looked at; None where the log is not even complete, so that there is nothing to draw from."""
    bare = _evidence(proof, policy, None, None)
    if log_chain(bare)[2] != "pass" or log_count(bare)[2] != "pass":
        return None
    full = draw(
        proof.contract,
        proof.leaves,
        audit_segments=policy.audit_segments,
        top_q=policy.top_q,
        pev_percent=policy.pev_percent,
        random=random,
        ends=True,
    )
    if proof.manifest.origin == "recorded":
        return full
    here = proof.states
    last = len(proof.leaves) - 1
    candidates = sorted(here - {last})
    segments = sorted(random.sample(candidates, min(policy.audit_segments, len(candidates))))
    return Opening(
        indices=tuple(sorted(here)),
        segments=tuple(segments),
        evaluations=tuple(e for e in full.evaluations if e.leaf in here),
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


def _evidence(proof: Proof, policy: AuditPolicy, opening: Opening | None, replayed: Replayed | None) -> Evidence:
    report = replayed.report if replayed else None
    return Evidence(
        contract=proof.contract,
        losses=proof.losses,
        times=proof.times,
        samples=(),
        leaves=proof.leaves,
        leaf_received_at=(),
        chain_problem=None,
        replay=report,
        opening_problem=None,
        worker_environment=proof.environment,
        verifier_environment=report.environment if report else None,
        top_q=policy.top_q,
        pev_percent=policy.pev_percent,
        asked=opening.segments if opening else (),
    )


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
        epochs=contract.epochs,
        iterations_per_epoch=contract.facts.iterations_per_epoch,
        loss_logs=len(proof.losses),
        verified_epochs=contract.epochs if verified else 0,
        rules=tuple(rules),
        replay_max_error=replay_max_error(seen),
        detection=detection(proof, policy, opening),
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
        return "nothing was drawn: the log itself is not whole"
    if len(opening.segments) == count:
        return f"all {count} segments were replayed: any false one is caught"
    if proof.manifest.origin == "platform":
        return (
            f"{len(opening.segments)} of {count} segments were replayed, of those that the platform had opened; what "
            "stayed closed cannot be replayed from this folder"
        )
    caught = 1 - 0.9 ** min(policy.audit_segments, count)
    return (
        f"{policy.audit_segments} of {count} segments were drawn at random, besides first, last and the largest of each"
        f" epoch: where one in ten is false, that is caught with a probability of {caught:.0%}"
    )


# -- one segment -------------------------------------------------------------------------------------------------------


class SegmentError(Message):
    """How far the replay of one segment ends from what the proof commits to. None: not finite, or not comparable."""

    start: int  # step
    stop: int
    digest_equal: bool  # the whole state, bit for bit
    l1: float | None
    l2: float | None
    linf: float | None
    cos: float | None  # 1 - cosine
    relative: float | None  # ||W' - W|| / ||W - W_start||; 1 is what doing nothing yields
    losses: float | None  # largest |logged - recomputed|
    one_class: bool
    seconds: float


@dataclass(frozen=True)
class Span:
    """A stretch between two leaves, as a contract in which it is one segment, and the leaves by their index in it."""

    contract: Contract
    leaf: int
    start: Leaf
    stop: Leaf


def span(proof: Proof, *, start: int, steps: int) -> Span:
    """The stretch of `steps` iterations from step `start`, both ends at leaves. Raises `UsageError`."""
    leaves = {leaf.step: leaf for leaf in proof.leaves}
    if start not in leaves or steps < 1 or start + steps not in leaves:
        wrong = start if start not in leaves else start + steps
        near = sorted(leaves, key=lambda step: (abs(step - wrong), step))[:4]
        raise UsageError(f"there is no leaf at step {wrong}; the nearest are at {', '.join(map(str, sorted(near)))}")
    contract = proof.contract
    if contract.leaf_steps() != sorted(leaves):
        raise UsageError("the proof's leaves are not those of its contract; `labapex verify` says more")
    if leaves[start + steps].index != leaves[start].index + 1:
        contract = _coarse(contract, start, steps)
    return Span(contract, contract.leaf_steps().index(start), leaves[start], leaves[start + steps])


def _coarse(contract: Contract, start: int, steps: int) -> Contract:
    """The same run with fewer leaves. Seed, script, loop and steps are untouched, so it replays exactly as it was."""
    total = contract.iterations
    facts = contract.facts.model_copy(update={"iterations_per_epoch": total, "has_loader": False})
    to_the_end = start + steps == total and start > 0 and steps <= start
    every = steps if start % steps == 0 else start if to_the_end else None
    if every is None:
        raise UsageError(
            f"a stretch over several leaves must begin at a multiple of its length; --from {start} does not"
        )
    return contract.model_copy(update={"epochs": 1, "checkpoint_every": every, "facts": facts})


def measure(proof: Proof, stretch: Span, report: ReplayReport) -> SegmentError:
    """The error of one stretch. Raises `LabApexError` where it could not be replayed."""
    if report.mismatched:
        raise LabApexError(f"the state of step {stretch.start.step} or {stretch.stop.step} is not the committed one")
    if report.problem is not None or len(report.segments) != 1:
        raise LabApexError(f"the segment could not be replayed: {report.problem or 'no reason was given'}")
    segment = report.segments[0]
    found = segment.distances or Distances(l1=None, l2=None, linf=None, cos=None, relative=None)
    return SegmentError(
        start=segment.start,
        stop=segment.stop,
        digest_equal=segment.state == stretch.stop.state,
        losses=_losses_apart(proof, segment),
        one_class=proof.environment is not None and proof.environment == report.environment,
        seconds=segment.seconds,
        **found.model_dump(),
    )


def span_request(stretch: Span) -> ReplayRequest:
    """What the child is asked for: it finds both states under the indices of the stretch's own contract."""
    return ReplayRequest(
        contract=stretch.contract,
        segments=(stretch.leaf,),
        compare=(stretch.leaf,),
        digests={stretch.leaf: stretch.start.state, stretch.leaf + 1: stretch.stop.state},
    )


def _losses_apart(proof: Proof, segment: SegmentReport) -> float | None:
    logged, again = proof.losses[segment.start : segment.stop], uncolumn(segment.losses)
    if len(logged) != len(again):
        return None
    apart = [0.0 if a == b or (a != a and b != b) else abs(a - b) for a, b in zip(logged, again, strict=True)]
    worst = max(apart)
    return worst if all(x < float("inf") for x in apart) else None


def _known(what: str, given: dict[str, Any], known: Any) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"
            raise UsageError(f"unknown {what} {str(key)!r} in the policy{hint}")
