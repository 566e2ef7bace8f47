"""A stopped job between its stop and its verdict: which lease's run is judged, and how far it counts."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from labapex.protocol.contract import Contract
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.changes import change
from labapex_server.marketplace.deposits import convict
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding

_LOST = (LeaseState.EXPIRED.value, LeaseState.FAILED.value)


def stopped_lease(job: Job) -> Lease | None:
    """The lease whose run is judged because the job was stopped; None where it was not, or where that is settled."""
    leases = Lease.objects.select_related("job", "worker").filter(
        job=job, state__in=(LeaseState.FINISHED.value, *_LOST)
    )
    return next((each for each in leases.order_by("-granted_at") if each.contract.get("stopped")), None)


def stop_training(lease: Lease, epochs: int, reason: str) -> None:
    """The host trains: from now on nothing is added, and its first `epochs` are judged. Raises `Conflict` where it had ended."""
    terms = _stopped(lease.terms, epochs)
    change(lease, LeaseState.RUNNING, LeaseState.FINISHED, finished_at=clock.now(), contract=terms)
    _advance(Job.objects.get(pk=lease.job_id), JobState.CHALLENGED, reason)


def stop_lost(job: Job, lost: Lease, epochs: int, reason: str) -> None:
    """The host whose epochs are to be judged is lost: it is found out what of them is here. Raises `Conflict` where the job went
    on meanwhile."""
    Lease.objects.filter(pk=lost.pk).update(contract=_stopped(lost.terms, epochs))
    for live in Lease.objects.filter(job=job, state__in=LIVE):  # another one that has made no epoch
        change(live, LeaseState(live.state), LeaseState.FAILED, ended_at=clock.now(), reason="stopped by its owner")
    if job.state == JobState.RESUMING.value:
        jobs.say(job, reason)
    else:
        _advance(job, JobState.RESUMING, reason, price_per_epoch=None)


@transaction.atomic
def show_for(lost: Lease, terms: Contract, reason: str) -> bool:
    """What a lost host did up to the end of `terms` is here, and is judged by it. False: the job is no longer `resuming`."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state != JobState.RESUMING.value:
        return False
    Lease.objects.filter(pk=lost.pk, state__in=_LOST).update(
        state=LeaseState.FINISHED.value, finished_at=clock.now(), contract=terms.model_dump(mode="json")
    )
    return jobs.advance(job, JobState.CHALLENGED, reason=reason, price_per_epoch=lost.price_per_epoch)


@transaction.atomic
def lose(lease: Lease, reason: str, finding: Finding) -> bool:
    """The host of a stopped run does not show what it is asked for. What it handed in before is looked at. False: too late."""
    job = Job.objects.get(pk=lease.job_id)
    if job.state != JobState.CHALLENGED.value or lease.state != LeaseState.FINISHED.value:
        return False
    change(lease, LeaseState.FINISHED, LeaseState.FAILED, ended_at=clock.now(), reason=reason)
    if finding is Finding.LOST:
        workers.mark(lease.worker, finding, lease=lease.pk, reason=reason)
    else:
        convict(lease, finding, reason=reason)
    _advance(job, JobState.RESUMING, f"{lease.worker.name}: {reason}; what it handed in while it trained is looked at")
    return True


@transaction.atomic
def disregard(lost: Lease, reason: str, *, false: bool, least: int) -> Lease | None:
    """Nothing of a lost host's own part counts; `false`: because it is not what it committed to. Returns the lease before it,
    where that brought the run beyond `least` epochs; else the job has ended, and nothing is paid."""
    Lease.objects.filter(pk=lost.pk).update(contract=_stopped(lost.terms, None))
    if false:
        Lease.objects.filter(pk=lost.pk).update(state=LeaseState.REJECTED.value, reason=reason)
        convict(lost, Finding.FALSE, reason=reason)
    job, terms = Job.objects.get(pk=lost.job_id), lost.terms
    before = terms.handovers[-1] if terms.handovers else None
    epochs = before.leaf.step // terms.facts.iterations_per_epoch if before is not None else 0
    if before is not None and epochs > least:
        earlier = Lease.objects.get(pk=before.lease)
        Lease.objects.filter(pk=earlier.pk).update(contract=_stopped(earlier.terms, epochs))
        return Lease.objects.select_related("job", "worker").get(pk=earlier.pk)
    whole = f"stopped by its owner; nothing is paid, and all that was held is given back: {reason}"
    jobs.advance(job, JobState.CANCELLED, reason=whole, fault=Fault.WORKER if false else Fault.CLIENT)
    return None


def _stopped(terms: Contract, epochs: int | None) -> dict[str, object]:
    return terms.model_copy(update={"stopped": epochs}).model_dump(mode="json")


def _advance(job: Job, to: JobState, reason: str, **fields: Any) -> None:
    if not jobs.advance(job, to, reason=reason, **fields):
        raise Conflict(f"the job is {job.state} by now")
