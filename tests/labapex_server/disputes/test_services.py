"""Verdicts that are contested, from the stake to the ruling and all that follows from it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.labapex_server.disputes.stage import (
    LAST,
    PAID,
    STATES,
    STEPS,
    nothing,
    rejected,
    ruled,
    settled,
    trained,
    unshown,
    verified,
    wrongly_judged,
)
from tests.labapex_server.gateway.stage import Host, a_host, a_true_digest

from labapex.certificate import check_revocation
from labapex.errors import NotEnoughCredit
from labapex.protocol.canonical import digest
from labapex.protocol.ruling import Outcome, Side
from labapex.protocol.states import JobState, LeaseState
from labapex.sealing import verify as verify_signature
from labapex_server.accounts.models import User
from labapex_server.disputes import execution
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute, Turn
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Conflict, Missing, Refused
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import disputing
from labapex_server.pipeline import sweep as sweeping
from labapex_server.transparency import certificates, revocations
from labapex_server.verification import earnings, fraud
from labapex_server.verification import services as verification
from labapex_server.workers import reputation

pytestmark = pytest.mark.usefixtures("another_platform")


@pytest.fixture
def funded(rig: Host) -> Host:
    """Its owner can put in a stake."""
    ledger.top_up(ledger.account_of(rig.worker.owner), amount=1_000_000, memo="test")
    return rig


def has(user: User) -> int:
    return ledger.balance(ledger.account_of(user)).available


def guarantee() -> int:
    return ledger.balance(ledger.guarantee()).available


def ruling_of(dispute: Dispute) -> Any:
    found = disputes.signed(dispute)
    assert found is not None
    verify_signature(keys.verdict_public_key(), found.ruling, found.signature)
    return found.ruling


def test_a_worker_that_was_wrongly_rejected_is_paid_after_all(researcher: User, host: User, funded: Host) -> None:
    job = wrongly_judged(trained(researcher, funded), word="rejected")
    assert (job.state, has(researcher)) == (JobState.REJECTED, 100_000_000)
    assert reputation.of(funded.worker).false == 1
    before = has(host)

    dispute = ruled(host, job, "every state was as it should be")
    ruling = ruling_of(dispute)
    assert (ruling.outcome, ruling.side, ruling.false) == (Outcome.REVERSED, Side.WORKER, None)
    assert ruling.because.startswith(f"all {LAST} segments were run again")
    assert (ruling.segments_executed, ruling.segments) == (LAST, LAST)
    assert (has(host), has(researcher)) == (before + PAID, 100_000_000 - PAID)
    assert (ruling.stake > 0, ruling.charged, guarantee()) == (True, 0, 0)
    assert [(each.payer, each.payee, each.amount) for each in ruling.moved] == [
        ("the platform's guarantee", "host", PAID),
        ("researcher", "the platform's guarantee", PAID),
    ]

    after = Job.objects.get()
    assert (after.state, after.reason) == (JobState.VERIFIED, f"a dispute was ruled: {ruling.because}")
    assert after.ended_at == job.ended_at
    verdict = verification.signed(after).verdict
    assert (verdict.verdict, digest(verdict)) == ("verified", ruling.verdict)
    assert "all 9 segments were replayed" in verdict.detection
    assert verification.weights(after)[0].read_bytes() == b"weights of the final state"
    certificate = certificates.record_of(after)
    assert certificate is not None
    assert certificates.statement(certificate).predicate.cost.paid == PAID
    record = reputation.of(funded.worker)
    assert (record.false, record.verified, record.in_a_row) == (0, 1, 1)
    assert not list(fraud.queue(clock.after(-3600)))
    assert [row.paid for row in earnings.of(funded.worker, skip=0).results] == [PAID]
    assert not dispute.folder.exists()


def test_a_client_who_has_spent_it_leaves_the_worker_to_the_guarantee(
    researcher: User, host: User, funded: Host
) -> None:
    job = wrongly_judged(trained(researcher, funded), word="rejected")
    ledger.reclaim(ledger.account_of(researcher), most=99_999_999, job=job.pk, memo="spent elsewhere")
    held = guarantee()
    ruled(host, job)
    assert (has(researcher), guarantee()) == (0, held - PAID + 1)


def test_a_host_that_lied_loses_its_stake_after_the_false_segment_alone(
    researcher: User, host: User, funded: Host
) -> None:
    job = rejected(researcher, funded, false=5)
    assert job.state == JobState.REJECTED
    before, clients = has(host), has(researcher)
    dispute = ruled(host, job, "I swear")
    ruling = ruling_of(dispute)
    assert (ruling.outcome, ruling.verdict, ruling.revoked) == (Outcome.UPHELD, None, None)
    false = ruling.false
    assert (false.segment, false.start, false.stop, false.origin) == (4, STEPS[4], STEPS[5], STEPS[4])
    assert (false.agreed, false.committed, false.recomputed) == (STATES[4], a_true_digest(99), STATES[5])
    assert [(turn.start, turn.stop, turn.confirms) for turn in Turn.objects.order_by("pk")] == [
        (4, 5, False),
        (4, 5, True),
    ]
    assert ruling.segments_executed == 2
    assert "iterations 9 to 11 were run again, twice" in ruling.because
    assert 0 < ruling.charged <= ruling.stake
    assert (has(host), has(researcher), guarantee()) == (before - ruling.charged, clients, ruling.charged)
    assert Job.objects.get().state == JobState.REJECTED
    assert disputes.again(dispute) == (
        f"labapex pull {job.pk} --proof proof && labapex replay proof --from 9 --steps 3"
    )


def test_a_client_who_contests_honest_work_pays_for_the_re_execution(researcher: User, funded: Host) -> None:
    job = verified(researcher, funded)
    assert job.state == JobState.VERIFIED
    before = has(researcher)
    ruling = ruling_of(ruled(researcher, job, "it smells"))
    assert (ruling.outcome, ruling.segments_executed) == (Outcome.UPHELD, LAST)
    assert has(researcher) == before - ruling.charged
    assert Job.objects.get().state == JobState.VERIFIED
    assert fraud.standing(researcher).disputes_lost == 1
    assert "1 dispute(s) lost" in str(fraud.standing(researcher))


def test_a_client_who_was_sold_a_lie_gets_all_back_and_the_certificate_is_revoked(
    researcher: User, host: User, funded: Host
) -> None:
    job = wrongly_judged(trained(researcher, funded, false=5), word="verified", false=5)
    assert (job.state, has(researcher)) == (JobState.VERIFIED, 100_000_000 - PAID)
    certificate = certificates.record_of(job)
    assert certificate is not None
    assert revocations.status(certificate.digest).revoked is None
    hosts = has(host)

    ruling = ruling_of(ruled(researcher, job))
    assert (ruling.outcome, ruling.false.segment, ruling.charged) == (Outcome.REVERSED, 4, 0)
    assert ruling.segments_executed < LAST + 1
    assert (has(researcher), has(host), guarantee()) == (100_000_000, hosts - PAID, 0)
    after = Job.objects.get()
    assert after.state == JobState.REJECTED
    assert verification.signed(after).verdict.deciding_rule == "replay"
    with pytest.raises(Refused, match="rejected"):
        verification.weights(after)
    assert Lease.objects.get().state == LeaseState.REJECTED
    assert ruling.blamed == Lease.objects.get().pk

    told = revocations.status(certificate.digest)
    revocation = check_revocation(told, certificate.digest, certificates.public_keys())
    assert revocation is not None
    assert (revocation.predicate.dispute, revocation.predicate.ruling) == (ruling.dispute, digest(ruling))
    (claim,) = certificates.claims(certificate.model)
    assert not claim.holds
    assert "revokes it" in claim.because
    record = reputation.of(funded.worker)
    assert (record.verified, record.false, record.in_a_row) == (0, 1, 0)
    assert [case.job.pk for case in fraud.queue(clock.after(-3600))] == [job.pk]


def test_what_a_host_has_spent_the_guarantee_bears(researcher: User, host: User, funded: Host) -> None:
    job = wrongly_judged(trained(researcher, funded, false=5), word="verified", false=5)
    ledger.reclaim(ledger.account_of(host), most=has(host) - 1, job=job.pk, memo="spent elsewhere")
    before = guarantee()
    ruled(researcher, job)
    assert (has(researcher), has(host), guarantee()) == (100_000_000, 0, before - PAID + 1)


def test_work_that_was_not_opened_is_run_again_from_the_seed_and_its_host_pays_for_that(
    researcher: User, host: User, funded: Host, settings: Any
) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"dispute_turn_seconds": 0.06})  # two segments
    job = unshown(researcher, funded)
    assert verification.signed(job).verdict.deciding_rule == "opening"
    before = has(host)
    dispute = disputes.contest(host, job.pk, "the network was down")

    def killed() -> None:
        if Turn.objects.count() == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disputes.go_on(dispute, beat=killed)
    assert Turn.objects.count() == 3
    assert sorted(path.name for path in dispute.folder.iterdir()) == ["4.safetensors"]
    assert disputing.work(dispute.pk)
    ruling = ruling_of(Dispute.objects.get())
    assert [(turn.start, turn.stop) for turn in Turn.objects.order_by("pk")] == [
        (0, 0), (0, 2), (2, 4), (4, 6), (6, 8), (8, 9)
    ]  # fmt: skip
    assert (ruling.outcome, ruling.segments_executed) == (Outcome.REVERSED, LAST)
    assert ruling.charged > 0
    assert has(host) == before + PAID - ruling.charged
    assert verification.weights(Job.objects.get())[1] == verification.signed(Job.objects.get()).verdict.weights


def test_a_false_start_is_found_without_any_state(researcher: User, host: User, funded: Host) -> None:
    run = trained(researcher, funded, false=0)
    verification.reject_late(verification.finished_lease(Job.objects.get()))
    ruling = ruling_of(ruled(host, settled(run)))
    assert (ruling.outcome, ruling.false.agreed, ruling.false.recomputed) == (Outcome.UPHELD, None, STATES[0])
    assert "initial state" in ruling.because


def test_a_platform_that_comes_to_two_results_says_nothing(researcher: User, funded: Host) -> None:
    job = wrongly_judged(trained(researcher, funded, wobble=3), word="verified")
    before = has(researcher)
    ruling = ruling_of(ruled(researcher, job))
    assert (ruling.outcome, ruling.charged) == (Outcome.UNJUDGED, 0)
    assert "in two ways here" in ruling.because
    assert has(researcher) == before
    assert Job.objects.get().state == JobState.VERIFIED
    assert disputes.terms(researcher, job.pk).obstacle is None  # a better platform may look again


def test_work_of_another_class_is_not_judged_by_what_it_differs_in(researcher: User, host: User, funded: Host) -> None:
    job = wrongly_judged(trained(researcher, funded), word="rejected")
    Lease.objects.update(environment=Lease.objects.get().environment | {"capability": "AVX512"})
    ruling = ruling_of(ruled(host, job))
    assert (ruling.outcome, ruling.charged, ruling.moved) == (Outcome.UNJUDGED, 0, ())
    assert "different classes" in ruling.because
    assert Job.objects.get().state == JobState.REJECTED


# -- who, when, how often ----------------------------------------------------------------------------------------------


def test_each_side_contests_what_went_against_it(
    researcher: User, other_researcher: User, host: User, cheat: User, funded: Host
) -> None:
    job = verified(researcher, funded)
    for stranger in (other_researcher, cheat):
        with pytest.raises(Missing):
            disputes.contest(stranger, job.pk, "mine too")
    with pytest.raises(Conflict, match="only a rejected run"):
        disputes.contest(host, job.pk, "more money")
    assert [found.job.pk for found in disputes.contestable(researcher)] == [job.pk]
    assert disputes.contestable(host) == disputes.contestable(other_researcher) == []


def test_a_verdict_is_contested_once_and_in_time(researcher: User, funded: Host, settings: Any) -> None:
    job = verified(researcher, funded)
    late = clock.now() - timedelta(days=15)
    Job.objects.update(ended_at=late)
    with pytest.raises(Conflict, match="could be contested until"):
        disputes.contest(researcher, job.pk, "late")
    Job.objects.update(ended_at=clock.now())
    dispute = disputes.contest(researcher, job.pk, "in time")
    with pytest.raises(Conflict, match="already"):
        disputes.contest(researcher, job.pk, "again")
    assert disputing.work(dispute.pk)
    assert not disputing.work(dispute.pk)
    with pytest.raises(Conflict, match="already"):
        disputes.contest(researcher, job.pk, "again")


def test_what_the_log_itself_decided_is_not_run_again(researcher: User, host: User, funded: Host) -> None:
    job = wrongly_judged(trained(researcher, funded), word="rejected")
    record = job.verdicts.get()
    record.document["deciding_rule"] = "log-chain"
    record.save()
    assert "decided by the log itself" in (disputes.terms(host, job.pk).obstacle or "")


def test_whoever_is_both_sides_has_nobody_to_contest_it_with(researcher: User, rig: Host) -> None:
    job = verified(researcher, a_host(researcher, "own"))
    assert "one owner" in (disputes.terms(researcher, job.pk).obstacle or "")


def test_a_stake_that_is_not_there_opens_nothing(researcher: User, host: User, rig: Host) -> None:
    job = wrongly_judged(trained(researcher, rig), word="rejected")
    with pytest.raises(NotEnoughCredit, match="price of training the job again"):
        disputes.contest(host, job.pk, "broke")
    assert not Dispute.objects.exists()


# -- the pipeline ------------------------------------------------------------------------------------------------------


def test_a_dispute_rings_its_task_and_the_sweep_rings_again(
    researcher: User, funded: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labapex_server.celery import app

    job = verified(researcher, funded)
    rung: list[tuple[str, str]] = []
    monkeypatch.setattr(app, "send_task", lambda name, args, **_: rung.append((name, args[0])))
    dispute = disputes.contest(researcher, job.pk, "look")
    assert rung == [("dispute", str(dispute.pk))]
    sweeping.sweep()
    assert len(rung) == 1
    sweeping.sweep(clock.now() + timedelta(seconds=60))
    assert rung[1:] == [("dispute", str(dispute.pk))]
    assert disputes.claim(dispute.pk, "somebody else", 60) is not None
    assert not disputing.work(dispute.pk)


def test_a_platform_that_cannot_run_it_gives_the_stake_back(researcher: User, funded: Host, settings: Any) -> None:
    job = verified(researcher, funded)
    before = has(researcher)
    dispute = disputes.contest(researcher, job.pk, "look")
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"runner_command": ("/bin/false",), "max_attempts": 2})
    for _ in range(2):
        Dispute.objects.update(claimed_until=None)
        assert disputing.work(dispute.pk)
    ruling = ruling_of(Dispute.objects.get())
    assert ruling.outcome is Outcome.UNJUDGED
    assert "could not run it again" in ruling.because
    assert has(researcher) == before


def test_a_state_to_go_on_from_that_is_gone_is_no_word_about_anybody(
    researcher: User, host: User, funded: Host, settings: Any
) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"dispute_turn_seconds": 0.06})
    dispute = disputes.contest(host, unshown(researcher, funded).pk, "the network was down")
    known = execution.course(dispute)
    for _ in range(2):
        plan = known.next()
        assert plan is not None
        known = execution.take(known, plan, nothing)
    (left,) = dispute.folder.iterdir()
    left.unlink()
    assert disputing.work(dispute.pk)
    ruling = ruling_of(Dispute.objects.get())
    assert (ruling.outcome, ruling.segments_executed) == (Outcome.UNJUDGED, 2)


def test_two_platforms_that_take_the_same_turn_count_it_once(researcher: User, funded: Host) -> None:
    job = verified(researcher, funded)
    dispute = disputes.contest(researcher, job.pk, "look")
    one, other = execution.course(dispute), execution.course(dispute)
    plan = one.next()
    assert plan is not None
    execution.take(one, plan, nothing)
    assert len(execution.take(other, plan, nothing).turns) == 1
    assert jobs.find(researcher, job.pk) is not None
