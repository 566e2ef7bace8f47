"""From evidence to a signed verdict. The rules themselves are `labapex.proof`'s: a third party runs the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labapex.errors import NotJudgeable
from labapex.proof import merkle, origins
from labapex.proof.chunks import Measured
from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, blamed, judge, replay_max_error, unjudged
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Environment
from labapex.protocol.replay import ReplayReport
from labapex.protocol.states import Fault
from labapex.protocol.verdict import Cost, RuleResult, Verdict
from labapex_server.lib import clock, tolerances
from labapex_server.marketplace.models import Lease
from labapex_server.verification.evidence import Record


def verdict(
    lease: Lease, seen: Evidence, *, drawn: int, opened: Sequence[int], shown_bytes: int, weights: str | None
) -> Verdict:
    """Judge one lease. `drawn` segments were drawn at random; the states `opened` came, and `shown_bytes` of chunks; `weights`
    is the digest of the result.

    Raises `NotJudgeable` where the replay ran on another class of hosts than was foreseen when the keys were given out."""
    contract, replay = seen.contract, seen.replay
    rules = judge(seen)
    if (why := unjudged(seen, rules)) is not None:
        raise NotJudgeable(why)
    outcome, deciding, reason = decide(rules)
    verified = outcome == "verified"
    false = None if deciding is None else blamed(seen, deciding)
    if false is not None and contract.handovers:
        whose = Lease.objects.values_list("worker__name", flat=True).get(pk=false.lease)
        reason += f"; that is in the part of {whose}, iterations {false.start} to {false.stop - 1}"
    sizes = {leaf.index: leaf.size for leaf in seen.leaves}
    segments_made = max(0, len(seen.leaves) - 1)
    train = seen.times[-1] - seen.times[0] if len(seen.times) > 1 else 0.0
    return Verdict(
        job=lease.job_id,
        lease=lease.pk,
        verdict="verified" if verified else "rejected",
        deciding_rule=None if verified else deciding,
        reason=reason,
        fault=Fault.NOBODY if verified else Fault.WORKER,
        blamed=None if false is None else false.lease,
        epochs=contract.epochs,
        iterations_per_epoch=contract.facts.iterations_per_epoch,
        loss_logs=len(seen.losses),
        verified_epochs=contract.counted if verified else 0,
        rules=tuple(rules),
        replay_max_error=replay_max_error(seen),
        detection=detection(drawn, segments_made),
        origin=origins.origin(
            contract,
            replay.start if replay else None,
            drawn=drawn if replay else 0,
            segments=max(1, segments_made),
        ),
        contract=digest(contract),
        proof_root=merkle.root(bytes.fromhex(leaf.digest()) for leaf in seen.leaves).hex(),
        weights=weights if verified else None,
        worker_environment=seen.worker_environment,
        verifier_environment=seen.verifier_environment,
        cost=Cost(
            verify_seconds=replay.seconds if replay else 0.0,
            train_seconds=max(0.0, train),
            opened_bytes=sum(sizes.get(index, 0) for index in opened) + shown_bytes,
            all_checkpoint_bytes=sum(sizes.values()),
            opened_states=len(opened),
            segments_replayed=len(replay.segments) if replay else 0,
        ),
        issued_at=clock.now().timestamp(),
    )


def early(seen: Evidence) -> list[RuleResult]:
    """The results that there are before anything was replayed."""
    return [result for result in judge(seen) if result.result != "not-applicable"]


def evidence(
    lease: Lease,
    record: Record,
    *,
    pev_percent: float,
    measured: Measured | None = None,
    opening_problem: str | None = None,
    replay: ReplayReport | None = None,
    segments: Sequence[int] = (),
) -> Evidence:
    """All that is known of a lease by now. `segments` were asked for."""
    worker = _environment(lease.environment)
    here = replay.environment if replay else _environment((lease.job.preflight or {}).get("environment"))
    return Evidence(
        contract=lease.terms,
        losses=record.losses,
        times=record.times,
        samples=record.samples,
        observations=record.observations,
        leaves=record.leaves,
        leaf_received_at=record.leaf_received_at,
        chain_problem=record.chain_problem,
        replay=replay,
        opening_problem=opening_problem,
        worker_environment=worker,
        verifier_environment=here,
        top_q=lease.job.job_spec.top_q,
        pev_percent=pev_percent,
        asked=tuple(segments),
        measured=measured,
        iteration_seconds=lease.job.iteration_seconds,
        known=record.known,
        tolerance=tolerances.between(worker, here, lease.terms.checkpoint_every),
    )


def detection(drawn: int, segments: int) -> str:
    """What the random choice proves, in words: a share f of false segments survives c draws with (1 - f)^c."""
    if not drawn:
        return "no segment was drawn: what was shown before decided"
    if drawn >= segments:
        return f"all {segments} segments were replayed: any false one is caught"
    caught = origins.caught(drawn, segments)
    return (
        f"{drawn} of {segments} segments were drawn at random after the last commitment, besides first, last"
        f" and the largest updates: where one in ten is false, that is caught with a probability of {caught:.0%}"
    )


def _environment(stored: object) -> Environment | None:
    return Environment.model_validate(stored) if stored else None


def weights_path(lease: Lease, home: Path) -> Path:
    """Where the result of a verified lease lies."""
    return home / "leases" / str(lease.pk) / "weights.safetensors"
