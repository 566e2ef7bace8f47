"""A stopped job goes on: the same job and the same run, behind the last epoch that was paid, with a hold for the rest."""

from __future__ import annotations

from django.db import transaction

from labapex.protocol.api import Stored
from labapex.protocol.contract import Handover
from labapex.protocol.states import JobState
from labapex_server.jobs import erasure
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.models import Lease
from labapex_server.verification import takeover
from labapex_server.verification.models import Challenge, OpenedState


def resumed_by(lease: Lease) -> tuple[Handover, ...]:
    """How the run of a stopped lease that was verified may go on: behind its last epoch, whose state was opened. Empty where it
    was not stopped, or where no other host makes the same bits."""
    terms = lease.terms
    if terms.stopped is None or not takeover.reproducible(lease):
        return ()
    if terms.gone:  # what counts of it was handed over so already
        return terms.handovers
    last = len(terms.leaf_steps()) - 1
    asked = Challenge.objects.get(lease=lease).all_indices
    here = OpenedState.objects.filter(lease=lease, index__in=asked, index__lte=last).order_by("index")
    leaf = lease.log.leaves.get(index=last).record
    return (*terms.handovers, Handover(lease=lease.pk, leaf=leaf, held=tuple(here.values_list("index", flat=True))))


@transaction.atomic
def go_on(job: Job) -> Job:
    """Resume a stopped job for its owner, with what its budget has left. One that is under way stays as it is.

    Raises `Conflict` where it cannot go on, `Gone` where what it would go on from was deleted, `NotEnoughCredit`."""
    if not JobState(job.state).ended:
        return job
    if not job.resumable:
        raise Conflict(f"the job is {job.state}: {_why_not(job)}")
    erasure.require(job, Stored.FILES, Stored.STATES)
    if job.erase_after is not None:
        raise Conflict("you asked for its data to be deleted; hand it in anew")
    epochs = job.job_spec.epochs
    money = ledger.outcome(job.hold)
    rest = job.budget - money.paid - money.fee
    memo = f"rest of the budget of {job.name}, for epochs {job.paid_epochs + 1} to {epochs}"
    held = ledger.hold(ledger.account_of(job.owner), amount=rest, job=job.pk, memo=memo)
    reason = f"resumed by its owner: goes on behind epoch {job.paid_epochs} of {epochs}; waits for a worker"
    if not jobs.advance(job, JobState.QUEUED, reason=reason, hold=held, attempts=0, price_per_epoch=None):
        raise Conflict("the job was resumed by somebody else just now")
    return job


def _why_not(job: Job) -> str:
    if job.state != JobState.CANCELLED.value:
        return "only a job that was stopped can be resumed; hand it in anew"
    if not job.paid_epochs:
        return "no epoch of it is verified, so there is nothing to go on from; hand it in anew"
    return "its worker was of a class of hosts whose run no other can go on with; hand it in anew, from its weights"
