"""From evidence to a signed verdict. The rules themselves are `labapex.proof`'s: a third party runs the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labapex.proof import merkle
from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, judge, replay_max_error
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Environment
from labapex.protocol.replay import ReplayReport
from labapex.protocol.states import Fault
from labapex.protocol.verdict import Cost, RuleResult, Verdict
from labapex_server.lib import clock
from labapex_server.marketplace.models import Lease
from labapex_server.verification.evidence import Record


def verdict(
    lease: Lease,
    record: Record,
    *,
    replay: ReplayReport | None,
    opening_problem: str | None,
    segments: Sequence[int],
    opened: Sequence[int],
    weights: str | None,
    pev_percent: float,
) -> Verdict:
    """Judge one lease. `segments` were asked for, the states `opened` came; `weights` is the digest of the result."""
    contract, spec = lease.terms, lease.job.job_spec
    seen = _evidence(lease, record, replay, opening_problem, segments, pev_percent)
    rules = judge(seen)
    outcome, deciding, reason = decide(rules)
    verified = outcome == "verified"
    sizes = {leaf.index: leaf.size for leaf in record.leaves}
    train = record.times[-1] - record.times[0] if len(record.times) > 1 else 0.0
    return Verdict(
        job=lease.job_id,
        lease=lease.pk,
        verdict="verified" if verified else "rejected",
        deciding_rule=None if verified else deciding,
        reason=reason,
        fault=Fault.NOBODY if verified else Fault.WORKER,
        epochs=contract.epochs,
        iterations_per_epoch=contract.facts.iterations_per_epoch,
        loss_logs=len(record.losses),
        verified_epochs=contract.epochs if verified else 0,
        rules=tuple(rules),
        replay_max_error=replay_max_error(seen),
        detection=detection(audit_segments=spec.audit_segments, segments=max(0, len(record.leaves) - 1)),
        contract=digest(contract),
        proof_root=merkle.root(bytes.fromhex(leaf.digest()) for leaf in record.leaves).hex(),
        weights=weights if verified else None,
        worker_environment=seen.worker_environment,
        verifier_environment=seen.verifier_environment,
        cost=Cost(
            verify_seconds=replay.seconds if replay else 0.0,
            train_seconds=max(0.0, train),
            opened_bytes=sum(sizes.get(index, 0) for index in opened),
            all_checkpoint_bytes=sum(sizes.values()),
            opened_states=len(opened),
            segments_replayed=len(replay.segments) if replay else 0,
        ),
        issued_at=clock.now().timestamp(),
    )


def early(lease: Lease, record: Record, *, pev_percent: float) -> list[RuleResult]:
    """The results that the log alone gives, before anything was replayed."""
    results = judge(_evidence(lease, record, None, None, (), pev_percent))
    return [result for result in results if result.result != "not-applicable"]


def _evidence(
    lease: Lease,
    record: Record,
    replay: ReplayReport | None,
    opening_problem: str | None,
    segments: Sequence[int],
    pev_percent: float,
) -> Evidence:
    return Evidence(
        contract=lease.terms,
        losses=record.losses,
        times=record.times,
        samples=record.samples,
        leaves=record.leaves,
        leaf_received_at=record.leaf_received_at,
        chain_problem=record.chain_problem,
        replay=replay,
        opening_problem=opening_problem,
        worker_environment=_environment(lease.environment),
        verifier_environment=replay.environment
        if replay
        else _environment((lease.job.preflight or {}).get("environment")),
        top_q=lease.job.job_spec.top_q,
        pev_percent=pev_percent,
        asked=tuple(segments),
        iteration_seconds=lease.job.iteration_seconds,
        known=record.known,
    )


def detection(*, audit_segments: int, segments: int) -> str:
    """What the random choice proves, in words: a share f of false segments survives c draws with (1 - f)^c."""
    if audit_segments >= segments:
        return f"all {segments} segments were replayed: any false one is caught"
    caught = 1 - 0.9**audit_segments
    return (
        f"{audit_segments} of {segments} segments were drawn at random after the last commitment, besides first, last"
        f" and the largest of each epoch: where one in ten is false, that is caught with a probability of {caught:.0%}"
    )


def _environment(stored: object) -> Environment | None:
    return Environment.model_validate(stored) if stored else None


def weights_path(lease: Lease, home: Path) -> Path:
    """Where the result of a verified lease lies."""
    return home / "leases" / str(lease.pk) / "weights.safetensors"
