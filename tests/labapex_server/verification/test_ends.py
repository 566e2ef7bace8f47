"""However a job ends, it says whose doing that was, what was paid and why, and shows the evidence where it was judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import Host, queued_job
from tests.labapex_server.scenes import finished, stand_in, submitted
from tests.labapex_server.verification.relay import (
    EPOCHS,
    EVERY,
    LOSSES,
    PER_EPOCH,
    SCRIPT,
    judged,
    lose,
    nothing,
    send,
    training,
)

from labapex.protocol.states import END_STATES, Fault, JobState
from labapex_server.accounts.models import User
from labapex_server.api.receipts import receipt
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock
from labapex_server.lib.errors import NotFinishedYet
from labapex_server.marketplace import services as marketplace
from labapex_server.pipeline import stages
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def held(researcher: User) -> Job:
    made = queued_job(researcher, epochs=EPOCHS, per_epoch=PER_EPOCH, every=EVERY, script=SCRIPT.encode())
    made.hold = ledger.hold(ledger.account_of(researcher), amount=made.budget, job=made.pk, memo="budget")
    made.save()
    return made


def done(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    run = training(job, rig)
    finished(run)
    judged(run)
    stages.work(job.pk, JobState.SETTLING, stages.settle)
    return job


def a_lie(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    run = training(job, rig, losses=[0.9 * LOSSES[0], *LOSSES[1:]])
    finished(run)
    judged(run)
    stages.work(job.pk, JobState.SETTLING, stages.settle)
    return job


def nothing_shown(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    finished(training(job, rig))
    stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    Challenge.objects.update(deadline=clock.now() - timedelta(seconds=1))
    (lease,) = verification.late(clock.now())
    verification.reject_late(lease)
    stages.work(job.pk, JobState.SETTLING, stages.settle)
    return job


def a_bad_script(researcher: User, rig: Host) -> Job:
    job = submitted(researcher, "problem: train.py, line 3: the loss is no number")
    verification.preflight(job, beat=nothing)
    return job


def a_script_that_breaks(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    marketplace.fail(training(job, rig).lease, "it ended", script="ValueError: no such file in train.py")
    return job


def hosts_that_are_lost(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    while (now := Job.objects.get(pk=job.pk)).state == JobState.QUEUED:
        lose(training(now, rig))
        if Job.objects.get(pk=job.pk).state == JobState.RESUMING:
            stages.work(job.pk, JobState.RESUMING, stages.resume)
    return job


def a_broken_platform(researcher: User, rig: Host) -> Job:
    job = submitted(researcher)

    def breaks(job: Job, beat: stages.Beat) -> None:
        raise RuntimeError("the disk is full")

    while not JobState(Job.objects.get(pk=job.pk).state).ended:
        Job.objects.filter(pk=job.pk).update(claimed_until=None)
        stages.work(job.pk, JobState.SUBMITTED, breaks)
    return job


def stopped_early(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    send(training(job, rig), 4)
    verification.stop(Job.objects.get(pk=job.pk))
    return job


def stopped_later(researcher: User, rig: Host) -> Job:
    job = held(researcher)
    run = training(job, rig)
    send(run, 16)
    verification.stop(Job.objects.get(pk=job.pk))
    judged(run)
    stages.work(job.pk, JobState.SETTLING, stages.settle)
    return job


@dataclass(frozen=True)
class End:
    story: Callable[[User, Host], Job]
    state: JobState
    fault: Fault
    epochs: int  # that are paid
    why: str  # among the words of its reason
    verdict: str | None = None


ENDS = [
    End(done, JobState.VERIFIED, Fault.NOBODY, EPOCHS, "every deciding rule passed", "verified"),
    End(a_lie, JobState.REJECTED, Fault.WORKER, 0, "point-loss", "rejected"),
    End(nothing_shown, JobState.REJECTED, Fault.WORKER, 0, "before the deadline", "rejected"),
    End(a_bad_script, JobState.REFUSED, Fault.CLIENT, 0, "the loss is no number"),
    End(a_script_that_breaks, JobState.FAILED, Fault.CLIENT, 0, "no such file"),
    End(hosts_that_are_lost, JobState.FAILED, Fault.WORKER, 0, "given up after 5 leases"),
    End(a_broken_platform, JobState.FAILED, Fault.PLATFORM, 0, "the platform gave up"),
    End(stopped_early, JobState.CANCELLED, Fault.CLIENT, 0, "nothing is paid"),
    End(stopped_later, JobState.CANCELLED, Fault.CLIENT, 2, "2 of 3 epochs are verified", "verified"),
]


def test_every_end_state_is_in_the_table() -> None:
    assert {end.state for end in ENDS} == END_STATES


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.story.__name__)
def test_an_end_says_whose_fault_it_is_what_is_paid_and_why(end: End, researcher: User, rig: Host) -> None:
    account = ledger.account_of(researcher)
    before = ledger.balance(account).available
    job = Job.objects.get(pk=end.story(researcher, rig).pk)
    assert (job.state, job.fault) == (end.state, end.fault), job.reason
    assert end.why in job.reason
    told = receipt(job)
    price = max((lease.price_per_epoch for lease in job.leases.all()), default=0)
    assert (told.paid, told.verified_epochs) == (end.epochs * price, end.epochs)
    assert told.reason == job.reason
    assert told.held == told.paid + told.fee + told.refunded
    assert sum(payment.amount for payment in told.payments) == told.paid
    assert ledger.balance(account) == ledger.Balance(before - told.paid, 0)
    if end.verdict is None:
        with pytest.raises(NotFinishedYet):
            verification.signed(job)
    else:
        assert verification.signed(job).verdict.verdict == end.verdict
