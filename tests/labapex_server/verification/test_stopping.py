"""A client stops a job: what was complete then is judged and paid, through the real services; a stand-in replays."""

from __future__ import annotations

import io
import uuid
from datetime import timedelta
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import Host, Run, a_host, a_true_state, queued_job
from tests.labapex_server.scenes import finished, stand_in
from tests.labapex_server.verification.relay import (
    EPOCHS,
    EVERY,
    LOSSES,
    PER_EPOCH,
    SCRIPT,
    STEPS,
    hand_in,
    judged,
    lose,
    resumed,
    send,
    training,
)

from labapex.errors import NotEnoughCredit
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex_server.accounts.models import User
from labapex_server.api.receipts import receipt
from labapex_server.gateway import books
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.audit import Audit, audit
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Gone, Missing, NotFinishedYet
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry import summaries
from labapex_server.telemetry.services import LogRefused
from labapex_server.telemetry.stints import parts
from labapex_server.transparency import certificates
from labapex_server.verification import earnings, erasing, evidence, proofs
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge, OpenedState
from labapex_server.web import reads
from labapex_server.workers import reputation
from labapex_server.workers.reputation import Reputation

pytestmark = pytest.mark.django_db
FIRST_END = STEPS.index(PER_EPOCH)


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_seconds": 0.001})


@pytest.fixture
def job(researcher: User) -> Job:
    """Its budget is held."""
    made = queued_job(researcher, epochs=EPOCHS, per_epoch=PER_EPOCH, every=EVERY, script=SCRIPT.encode())
    made.hold = ledger.hold(ledger.account_of(researcher), amount=made.budget, job=made.pk, memo="budget")
    made.save()
    return made


@pytest.fixture
def second(host: User) -> Host:
    return a_host(host, "second")


def now(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def stopped(job: Job) -> Job:
    return verification.stop(now(job))


def settled(job: Job) -> Job:
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    return now(job)


def wound_up(job: Job) -> Job:
    """The platform looks at what a lost host of a stopped job handed in, and judges what holds of it."""
    assert stages.work(job.pk, JobState.RESUMING, stages.resume)
    while now(job).state in (JobState.CHALLENGED, JobState.VERIFYING):
        state = JobState(now(job).state)
        assert stages.work(job.pk, state, stages.challenge if state is JobState.CHALLENGED else stages.verify)
    return settled(job) if now(job).state == JobState.SETTLING else now(job)


def balanced(job: Job, paid: int) -> None:
    """Receipt, ledger and account say the same, and all of the hold is accounted for."""
    told = receipt(now(job))
    assert (told.paid, told.paid + told.refunded) == (paid, told.held)
    assert sum(each.amount for each in told.payments) in (0, paid)
    account = ledger.account_of(now(job).owner)
    assert ledger.balance(account).held == 0
    assert ledger.spent(account) == paid


# -- the host trains ---------------------------------------------------------------------------------------------------


def test_a_stopped_job_pays_for_what_was_verified(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 16)
    assert jobs.view(now(job)).cost == 2 * run.lease.price_per_epoch
    held = stopped(job)
    assert held.state == JobState.CHALLENGED
    assert "stopped by its owner after 2 of 3 epochs" in held.reason
    lease = Lease.objects.get(pk=run.lease.pk)
    assert (lease.state, lease.terms.stopped) == (LeaseState.FINISHED, 2)
    assert lease.terms.first == run.lease.terms
    assert jobs.view(held).progress.iterations == 2 * PER_EPOCH
    assert telemetry.losses(lease) == LOSSES[: 2 * PER_EPOCH]

    verdict = judged(run)
    assert (verdict.verdict, verdict.verified_epochs, verdict.epochs) == ("verified", 2, 3), verdict.reason
    assert verdict.loss_logs == 2 * PER_EPOCH
    assert max(Challenge.objects.get().all_indices) == STEPS.index(2 * PER_EPOCH)
    manifest, _ = proofs.prepare(now(job))
    assert manifest.contract == verdict.contract

    ended = settled(job)
    price = run.lease.price_per_epoch
    assert (ended.state, ended.fault, ended.paid_epochs) == (JobState.CANCELLED, Fault.CLIENT, 2)
    assert "2 of 3 epochs are verified" in ended.reason
    balanced(job, 2 * price)
    (payment,) = receipt(ended).payments
    assert (payment.epochs, payment.amount) == (2, 2 * price)
    assert jobs.view(ended).cost == 2 * price
    (earned,) = earnings.of(rig.worker, skip=0).results
    assert (earned.paid, earned.verified_epochs) == (2 * price, 2)
    assert reads.earnings([rig.worker.pk], rig.worker.owner) == {rig.worker.pk: 2 * price}
    assert reputation.of(rig.worker) == Reputation(verified=1, in_a_row=1)
    assert verification.weights(ended)[1] == verdict.weights
    assert certificates.record_of(ended) is None, "it was not trained to its end"


def test_the_platforms_fee_is_due_with_each_paid_epoch_and_within_the_cap(job: Job, rig: Host, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"fee_basis_points": 2500})
    run = training(job, rig)
    price, fee = run.lease.price_per_epoch, run.lease.fee_per_epoch
    assert fee == -(-price // 4) > 0
    send(run, 16)
    assert jobs.view(now(job)).cost == 2 * (price + fee)
    stopped(job)
    assert judged(run).verdict == "verified"
    ended = settled(job)
    told = receipt(ended)
    assert (told.paid, told.fee) == (2 * price, 2 * fee)
    assert told.held == told.paid + told.fee + told.refunded
    assert jobs.view(ended).cost == told.paid + told.fee == ledger.spent(ledger.account_of(job.owner))
    assert ledger.balance(ledger.fees()).available == 2 * fee
    verification.go_on(now(job))
    again = training(job, rig)
    finished(again)
    assert judged(again).verdict == "verified"
    told = receipt(settled(job))
    assert (told.paid, told.fee) == (3 * price, 3 * fee)
    assert told.paid + told.fee <= job.budget
    assert audit() == Audit(escrow=0, overdrawn=0, circulating=audit().circulating, held=0)


def test_an_epoch_that_was_not_complete_costs_nothing_and_shows_nothing(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, PER_EPOCH - 3)  # whole frames
    ended = stopped(job)
    assert (ended.state, ended.fault) == (JobState.CANCELLED, Fault.CLIENT)
    assert "no epoch was complete" in ended.reason
    balanced(job, 0)
    with pytest.raises(NotFinishedYet, match="no verdict"):
        verification.weights(ended)


def test_nothing_is_added_after_the_stop_and_the_host_is_told_at_once(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, PER_EPOCH + 1)
    stopped(job)
    with pytest.raises(LogRefused) as refused:
        telemetry.ingest(rig.worker.pk, run.executable.frames[2])
    assert not refused.value.breach
    assert books.is_stopped(rig.worker, run.lease.pk)
    (news,) = books.news([books.Asked(rig.worker.pk, frozenset([run.lease.pk]), frozenset(), states=True)])
    assert (news.stopped, news.released) == ((run.lease.pk,), ())
    with pytest.raises(Missing):
        verification.keep_state(Lease.objects.get(pk=run.lease.pk), STEPS.index(9), io.BytesIO(a_true_state(4)))


def test_stopping_twice_is_stopping_once(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, PER_EPOCH + 1)
    version = stopped(job).version
    assert stopped(job).version == version
    judged(run)
    assert stopped(job).state == JobState.SETTLING
    assert stopped(job).pk == settled(job).pk
    assert stopped(job).state == JobState.CANCELLED


def test_a_lie_in_a_complete_epoch_is_found_and_nothing_is_paid(job: Job, rig: Host) -> None:
    run = training(job, rig, losses=[0.9 * LOSSES[0], *LOSSES[1:]])
    send(run, PER_EPOCH + 1)
    stopped(job)
    verdict = judged(run)
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "point-loss")
    assert settled(job).state == JobState.REJECTED
    balanced(job, 0)
    assert reputation.of(rig.worker).false == 1


# -- it goes on later --------------------------------------------------------------------------------------------------


def paused(job: Job, host: Host, iterations: int = 16) -> Run:
    """A job that trained, was stopped, verified and paid so far."""
    run = training(job, host)
    send(run, iterations)
    stopped(job)
    assert judged(run).verdict == "verified"
    settled(job)
    return run


def test_a_stopped_job_goes_on_behind_its_last_paid_epoch_and_no_epoch_is_paid_twice(
    job: Job, rig: Host, second: Host
) -> None:
    first = paused(job, rig)
    price, budget = first.lease.price_per_epoch, job.budget
    assert jobs.view(now(job)).resumable
    states = OpenedState.objects.filter(lease=first.lease).count()
    verification.forget_states(clock.now())
    assert OpenedState.objects.filter(lease=first.lease).count() == states, "all were drawn, and are needed"

    waiting = verification.go_on(now(job))
    assert (waiting.state, waiting.ended_at, waiting.fault) == (JobState.QUEUED, None, "")
    assert ledger.balance(ledger.account_of(job.owner)).held == budget - 2 * price
    assert verification.go_on(now(job)).version == waiting.version, "once is enough"
    assert jobs.view(now(job)).cost == 2 * price

    run = training(job, second)
    terms = run.lease.terms
    assert (run.lease.seed, terms.first, terms.stopped) == (first.lease.seed, first.lease.terms, None)
    assert terms.after is not None
    assert terms.after.step == 2 * PER_EPOCH
    assert verification.handed_over(run.lease, terms.after.index).read_bytes() == a_true_state(terms.after.index)
    finished(run)
    assert telemetry.losses(Lease.objects.get(pk=run.lease.pk)) == LOSSES
    verdict = judged(run)
    assert (verdict.verdict, verdict.verified_epochs, verdict.loss_logs) == ("verified", 3, len(LOSSES)), verdict.reason
    done = settled(job)
    assert (done.state, done.paid_epochs) == (JobState.VERIFIED, 3)
    told = receipt(done)
    assert told.paid == 2 * price + run.lease.price_per_epoch
    assert told.held == told.paid + told.refunded == budget + (budget - 2 * price)
    assert [(each.worker, each.epochs) for each in told.payments] == [("rig", 2), ("second", 1)]
    assert ledger.balance(ledger.account_of(job.owner)).held == 0
    assert ledger.spent(ledger.account_of(job.owner)) == told.paid
    assert proofs.prepare(done)[0].contract == verdict.contract
    assert verification.weights(done)[1] == verdict.weights
    earned = reads.earnings([rig.worker.pk, second.worker.pk], rig.worker.owner)
    assert earned == {rig.worker.pk: 2 * price, second.worker.pk: run.lease.price_per_epoch}
    assert [each.paid for each in earnings.of(rig.worker, skip=0).results] == [2 * price, 0]
    (found,) = earnings.of(second.worker, skip=0).results
    assert (found.paid, found.verified_epochs) == (run.lease.price_per_epoch, 1)


def test_a_job_is_stopped_and_resumed_any_number_of_times(job: Job, rig: Host) -> None:
    first = paused(job, rig, 8)
    verification.go_on(now(job))
    again = training(job, rig)
    send(again, 16)
    stopped(job)
    assert judged(again).verified_epochs == 2
    ended = settled(job)
    assert (ended.state, ended.paid_epochs) == (JobState.CANCELLED, 2)
    balanced(job, first.lease.price_per_epoch + again.lease.price_per_epoch)
    verification.go_on(now(job))
    last = training(job, rig)
    finished(last)
    assert judged(last).verdict == "verified"
    assert settled(job).state == JobState.VERIFIED
    balanced(job, 3 * first.lease.price_per_epoch)


def test_a_resumed_job_that_is_stopped_before_a_further_epoch_pays_nothing_more(job: Job, rig: Host) -> None:
    first = paused(job, rig)
    verification.go_on(now(job))
    again = training(job, rig)
    send(again, 18)
    ended = stopped(job)
    assert (ended.state, ended.paid_epochs) == (JobState.CANCELLED, 2)
    assert "no further epoch was complete" in ended.reason
    balanced(job, 2 * first.lease.price_per_epoch)
    assert ended.resumable
    verification.forget_states(clock.now())
    verification.go_on(now(job))
    assert training(job, rig).lease.terms.after == again.lease.terms.after
    assert verification.weights(now(job))[1], "what was paid stays hers"


def test_what_a_lost_host_handed_in_is_gone_on_from_as_well(job: Job, rig: Host, second: Host) -> None:
    lost = training(job, rig)
    send(lost, 12)
    hand_in(lost, 0, 4)
    resumed(lost)
    stopped(job)
    wound_up(job)
    verification.forget_states(clock.now())
    verification.go_on(now(job))
    run = training(job, second)
    assert run.lease.terms.after is not None
    assert run.lease.terms.after.step == PER_EPOCH
    finished(run)
    assert judged(run).verdict == "verified"
    assert settled(job).state == JobState.VERIFIED
    balanced(job, lost.lease.price_per_epoch + 2 * run.lease.price_per_epoch)


def test_a_lie_after_the_resumption_takes_nothing_back_that_was_verified(job: Job, rig: Host, second: Host) -> None:
    first = paused(job, rig)
    verification.go_on(now(job))
    liar = training(job, second, losses=[*LOSSES[:14], *(0.9 * loss for loss in LOSSES[14:])])
    finished(liar)
    verdict = judged(liar)
    assert (verdict.verdict, verdict.blamed) == ("rejected", liar.lease.pk)
    ended = settled(job)
    assert (ended.state, ended.paid_epochs) == (JobState.REJECTED, 2)
    balanced(job, 2 * first.lease.price_per_epoch)
    assert receipt(ended).verified_epochs == 2
    earned = reads.earnings([rig.worker.pk, second.worker.pk], rig.worker.owner)
    assert earned == {rig.worker.pk: 2 * first.lease.price_per_epoch}


def test_no_run_that_was_paid_is_begun_anew_for_want_of_a_host(job: Job, rig: Host, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_wait_seconds": 0})
    first = paused(job, rig)
    verification.go_on(now(job))
    assert training(job, rig).lease.terms.first == first.lease.terms


def test_a_job_goes_on_only_if_its_rest_can_be_held(job: Job, rig: Host) -> None:
    paused(job, rig)
    account = ledger.account_of(job.owner)
    ledger.hold(account, amount=ledger.balance(account).available, job=uuid.uuid4(), memo="another job")
    with pytest.raises(NotEnoughCredit):
        verification.go_on(now(job))
    assert now(job).state == JobState.CANCELLED


def test_only_a_stopped_job_with_verified_epochs_goes_on(job: Job, rig: Host) -> None:
    run = training(job, rig)
    assert verification.go_on(now(job)).state == JobState.RUNNING
    send(run, 4)
    stopped(job)
    with pytest.raises(Conflict, match="no epoch of it is verified"):
        verification.go_on(now(job))
    Job.objects.update(state=JobState.FAILED.value)
    with pytest.raises(Conflict, match="only a job that was stopped"):
        verification.go_on(now(job))
    Job.objects.update(state=JobState.CANCELLED.value, paid_epochs=1, handovers=[])
    with pytest.raises(Conflict, match="class of hosts"):
        verification.go_on(now(job))


def test_a_job_whose_data_was_deleted_does_not_go_on(job: Job, rig: Host, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"evidence_days": 0})
    paused(job, rig)
    erasing.ask(now(job))
    with pytest.raises(Gone):
        verification.go_on(now(job))


# -- the host is not there ---------------------------------------------------------------------------------------------


def late(run: Run) -> Job:
    """The host has not shown what it was asked for when the deadline passes."""
    Challenge.objects.update(deadline=clock.now() - timedelta(seconds=1))
    (lease,) = verification.late(clock.now())
    verification.reject_late(lease)
    return Job.objects.get(pk=run.lease.job_id)


def test_a_host_that_shows_nothing_is_paid_for_what_it_handed_in_before(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 16)
    hand_in(run, 0, 4)  # that of iteration 9: one epoch is proven by it, the second is not
    stopped(job)
    assert stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    Challenge.objects.update(round=0)
    assert late(run).state == JobState.RESUMING
    assert reputation.of(rig.worker) == Reputation(lost=1)
    ended = wound_up(job)
    assert (ended.state, ended.paid_epochs) == (JobState.CANCELLED, 1), ended.reason
    balanced(job, run.lease.price_per_epoch)
    verdict = verification.signed(ended).verdict
    assert (verdict.verdict, verdict.verified_epochs) == ("verified", 1)
    made = OpenedState.objects.get(lease=run.lease, index=FIRST_END)
    assert made.path.read_bytes() == a_true_state(FIRST_END), "it was made anew on the way"
    assert proofs.prepare(ended)[0].contract == verdict.contract
    assert reads.earnings([rig.worker.pk], rig.worker.owner) == {rig.worker.pk: run.lease.price_per_epoch}


def test_a_host_that_is_late_once_it_knows_what_was_drawn_is_not_trusted(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 16)
    stopped(job)
    assert stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    assert Challenge.objects.get().round == 1
    assert late(run).state == JobState.RESUMING
    assert reputation.of(rig.worker) == Reputation(unopened=1)
    ended = wound_up(job)
    assert (ended.state, ended.fault) == (JobState.CANCELLED, Fault.CLIENT)
    assert "no state of it is here" in ended.reason
    balanced(job, 0)


def test_a_host_that_says_it_cannot_show_is_asked_no_more(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 16)
    hand_in(run, 0, 6)
    stopped(job)
    assert stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    books.fail(rig.worker, run.lease.pk, "the disk is broken")
    assert wound_up(job).paid_epochs == 2
    balanced(job, 2 * run.lease.price_per_epoch)


def test_what_a_lost_host_did_is_paid_when_the_job_is_stopped_while_it_is_looked_at(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 12)
    hand_in(run, 0, 4)
    lose(run)
    assert stopped(job).state == JobState.RESUMING
    ended = wound_up(job)
    assert (ended.state, ended.paid_epochs) == (JobState.CANCELLED, 1), ended.reason
    balanced(job, run.lease.price_per_epoch)


def test_what_a_lost_host_did_is_paid_when_the_job_is_stopped_while_it_waits(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 12)
    hand_in(run, 0, 4)
    assert resumed(run).state == JobState.QUEUED
    assert stopped(job).state == JobState.RESUMING
    assert wound_up(job).paid_epochs == 1
    balanced(job, run.lease.price_per_epoch)


def test_each_host_of_a_stopped_run_is_paid_for_the_epochs_that_ended_on_it(job: Job, rig: Host, second: Host) -> None:
    first = training(job, rig)
    send(first, 12)
    hand_in(first, 0, 4)
    resumed(first)
    run = training(job, second)
    send(run, 16)
    assert stopped(job).state == JobState.CHALLENGED
    verdict = judged(run)
    assert (verdict.verdict, verdict.verified_epochs) == ("verified", 2), verdict.reason
    ended = settled(job)
    assert [(each.worker, each.epochs) for each in receipt(ended).payments] == [("rig", 1), ("second", 1)]
    balanced(job, first.lease.price_per_epoch + run.lease.price_per_epoch)


def test_a_host_that_has_made_no_epoch_is_let_go_and_the_one_before_it_is_paid(
    job: Job, rig: Host, second: Host
) -> None:
    first = training(job, rig)
    send(first, 12)
    hand_in(first, 0, 4)
    resumed(first)
    run = training(job, second)
    send(run, 11)
    assert stopped(job).state == JobState.RESUMING
    assert Lease.objects.get(pk=run.lease.pk).state == LeaseState.FAILED
    ended = wound_up(job)
    assert ended.paid_epochs == 1
    assert [(each.worker, each.epochs) for each in receipt(ended).payments] == [("rig", 1)]
    balanced(job, first.lease.price_per_epoch)


def test_a_lost_hosts_lie_is_found_and_an_earlier_hosts_epoch_is_still_paid(job: Job, rig: Host, second: Host) -> None:
    first = training(job, rig)
    send(first, 8)
    hand_in(first, 0, FIRST_END)
    resumed(first)
    liar = training(job, second, losses=[*LOSSES[:8], *(0.9 * loss for loss in LOSSES[8:])])
    send(liar, 16)
    hand_in(liar, STEPS.index(14))
    lose(liar)
    stopped(job)
    ended = wound_up(job)
    assert (ended.state, ended.paid_epochs) == (JobState.CANCELLED, 1), ended.reason
    assert Lease.objects.get(pk=liar.lease.pk).state == LeaseState.REJECTED
    assert reputation.of(second.worker).false == 1
    assert reputation.of(rig.worker).verified == 1
    balanced(job, first.lease.price_per_epoch)


def test_a_lie_of_the_only_host_is_found_and_nothing_is_paid(job: Job, rig: Host) -> None:
    liar = training(job, rig, losses=[0.9 * loss for loss in LOSSES])
    send(liar, 12)
    hand_in(liar, 0, 4)
    lose(liar)
    stopped(job)
    ended = wound_up(job)
    assert (ended.state, ended.fault) == (JobState.CANCELLED, Fault.WORKER)
    assert "is false" in ended.reason
    assert "nothing is paid" in ended.reason
    balanced(job, 0)


def test_the_log_of_a_stopped_run_is_read_as_far_as_it_counts(job: Job, rig: Host) -> None:
    run = training(job, rig)
    send(run, 20)
    seen = telemetry.events(now(job), "")
    assert len(seen.losses) == 20
    stopped(job)
    page = telemetry.events(now(job), seen.cursor)
    assert (page.restarted, page.kept) == (True, 14)
    assert list(telemetry.events(now(job), "").losses) == LOSSES[:14]
    drawn = summaries.curve(parts(Lease.objects.get(pk=run.lease.pk)), 0, None, 100)
    assert (drawn.stop, drawn.end) == (14, 14)
    record = evidence.read(Lease.objects.get(pk=run.lease.pk))
    assert (record.chain_problem, record.losses) == (None, LOSSES[:14])
    assert marketplace.stopped_lease(now(job)) is not None
