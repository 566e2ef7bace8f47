"""The end of a lease before its work is judged: complete, failed, lost or not wanted any more; and what its job does then."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q

from labapex.protocol.states import Fault, JobState, LeaseState
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.changes import try_change
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding


@transaction.atomic
def finish(lease: Lease) -> bool:
    """The log is complete and every commitment fixed. True if that is the case now, also when it was before."""
    changed = try_change(lease, LeaseState.RUNNING, LeaseState.FINISHED, finished_at=clock.now())
    if not changed:
        return lease.state == LeaseState.FINISHED.value
    job = Job.objects.get(pk=lease.job_id)
    if not jobs.advance(job, JobState.CHALLENGED, reason="training is complete; the worker opens what is asked for"):
        raise Conflict("the job was stopped; delete its files")
    return True


@transaction.atomic
def decline(lease: Lease, reason: str) -> bool:
    """The worker's host has not the room that the job asks for, and started nothing: the job waits for one that has. False: the
    lease was past that."""
    waits = f"a worker with the room that it asks for; {lease.worker.name} has not: {reason}"
    return send_back(lease, LeaseState.DECLINED, reason, waits)


def send_back(lease: Lease, to: LeaseState, reason: str, waits: str) -> bool:
    """End a lease that was only granted; its job waits for what `waits` says. It does not count among the lost ones. Within a
    transaction. False: the lease was past that."""
    if not try_change(lease, LeaseState.GRANTED, to, ended_at=clock.now(), reason=reason):
        return False
    job = Job.objects.get(pk=lease.job_id)
    if job.state == JobState.LEASED.value:
        jobs.advance(job, JobState.QUEUED, reason=f"waits for {waits}", price_per_epoch=None)
    return True


@transaction.atomic
def fail(lease: Lease, reason: str, *, script: str | None = None, fault: Fault = Fault.WORKER) -> None:
    """The worker could not go on. That is its own matter unless `fault` says whose, and the job waits for another one.

    Unless its log says that the script ended with an error, which `script` tells: then the job has failed.
    """
    before = LeaseState(lease.state)
    if before not in (LeaseState.GRANTED, LeaseState.RUNNING):
        return
    if not try_change(lease, before, LeaseState.FAILED, ended_at=clock.now(), reason=reason):
        return
    if script is None:
        what = "could not start it" if before is LeaseState.GRANTED else "could not finish it"
        if fault is Fault.WORKER:
            _mark_lost(lease, reason)
        _requeue(lease, f"{lease.worker.name} {what}: {reason}")
    else:
        job = Job.objects.get(pk=lease.job_id)
        if not JobState(job.state).ended:
            jobs.advance(job, JobState.FAILED, reason=script, fault=Fault.CLIENT)


def expire_silent(now: datetime) -> int:
    """Give up leases whose worker fell silent or never started; their jobs wait again. Returns how many."""
    started_by = now - timedelta(seconds=settings.LABAPEX.start_seconds)
    silent = Q(state__in=(LeaseState.GRANTED.value, LeaseState.RUNNING.value), expires_at__lt=now)
    idle = Q(state=LeaseState.GRANTED.value, granted_at__lt=started_by)
    given_up = 0
    for lost in Lease.objects.select_related("job", "worker").filter(silent | idle):
        with transaction.atomic():
            before = LeaseState(lost.state)
            current = Lease.objects.filter(pk=lost.pk, expires_at=lost.expires_at)  # it may have spoken meanwhile
            if try_change(
                lost, before, LeaseState.EXPIRED, among=current, ended_at=now, reason="the worker fell silent"
            ):
                given_up += 1
                _mark_lost(lost, lost.reason)
                _requeue(lost, f"{lost.worker.name} fell silent")
    return given_up


def give_up(lease: Lease, reason: str) -> bool:
    """End a lease whose worker is there and does not get on; its job waits again. False: it had ended before."""
    with transaction.atomic():
        if not try_change(lease, LeaseState.RUNNING, LeaseState.EXPIRED, ended_at=clock.now(), reason=reason):
            return False
        _mark_lost(lease, reason)
        _requeue(lease, f"{lease.worker.name}: {reason}")
        return True


def release_ended() -> int:
    """End live leases of jobs that have ended, for example by their owner. Returns how many."""
    ended = [state.value for state in JobState if state.ended]
    released = 0
    for left in Lease.objects.select_related("job").filter(state__in=LIVE, job__state__in=ended):
        reason = left.job.reason or f"the job is {left.job.state}"
        released += try_change(left, LeaseState(left.state), LeaseState.FAILED, ended_at=clock.now(), reason=reason)
    return released


def _mark_lost(lease: Lease, reason: str) -> None:
    if lease.excused:
        return
    workers.mark(lease.worker, Finding.LOST, lease=lease.pk, reason=reason)


def _requeue(lost: Lease, reason: str) -> None:
    """Let the job wait for another worker, unless too many leases of it were lost.

    Where the worker was to hand in states, it is first looked whether another one can go on from there."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state == JobState.RUNNING.value and lost.contract.get("upload_every"):
        jobs.advance(job, JobState.RESUMING, reason=reason, price_per_epoch=None)
    elif job.state in (JobState.LEASED.value, JobState.RUNNING.value):
        wait_again(job, reason)


def wait_again(job: Job, reason: str) -> bool:
    """The lost lease has brought the job no further."""
    if job.attempts + 1 >= settings.LABAPEX.max_attempts:
        reason = f"given up after {job.attempts + 1} leases; the last: {reason}"
        return jobs.advance(job, JobState.FAILED, reason=reason, fault=Fault.WORKER, attempts=F("attempts") + 1)
    return jobs.advance(job, JobState.QUEUED, reason=reason, attempts=F("attempts") + 1, price_per_epoch=None)
