"""Going on elsewhere: what becomes of a job whose lease was lost, and with whose run the next lease goes on."""

from __future__ import annotations

from django.conf import settings
from django.db import transaction

from labapex.protocol.contract import Environment, Handover
from labapex.protocol.states import JobState, LeaseState
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace.classes import another_class
from labapex_server.marketplace.deposits import convict
from labapex_server.marketplace.ending import wait_again
from labapex_server.marketplace.models import Lease
from labapex_server.marketplace.stopping import stopped_lease
from labapex_server.workers.models import Finding


def lost_lease(job: Job) -> Lease:
    """The lease whose loss made a job `resuming`: its latest."""
    return Lease.objects.select_related("job", "worker").filter(job=job).latest("granted_at")


@transaction.atomic
def hand_over(lost: Lease, handover: Handover, reason: str) -> bool:
    """What a lost lease has done holds: the next one goes on behind it. False: the job is no longer
    `resuming`, or it was stopped meanwhile.

    A lease that brought its job further is none of those after which a job is given up."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state != JobState.RESUMING.value or stopped_lease(job) is not None:
        return False
    handovers = [*lost.terms.handovers, handover]
    return jobs.advance(
        job, JobState.QUEUED, reason=reason, handovers=[each.model_dump(mode="json") for each in handovers]
    )


@transaction.atomic
def begin_anew(lost: Lease, reason: str, *, false: bool) -> bool:
    """Nothing of a lost lease can be used; `false`: because what it had done is not what it committed to. The next one goes on
    from where that lease did, or begins anew. False: the job is no longer `resuming`, or it was stopped meanwhile."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state != JobState.RESUMING.value or stopped_lease(job) is not None or not wait_again(job, reason):
        return False
    if false:
        Lease.objects.filter(pk=lost.pk).update(state=LeaseState.REJECTED.value, reason=reason)
        convict(lost, Finding.FALSE, reason=reason)
    return True


def predecessor(job: Job, environment: Environment | None) -> Lease | None:
    """The lost lease with whose run the next one goes on. None where it begins anew: because nothing is there to go on from,
    or because no host of that class came for so long that one of another class may; not where epochs of it are paid already."""
    if not job.handovers:
        return None
    before = Lease.objects.get(pk=job.handovers[-1]["lease"])
    waited = (
        not job.paid_epochs
        and before.ended_at is not None
        and before.ended_at < clock.after(-settings.LABAPEX.handover_wait_seconds)
    )
    return None if waited and environment is not None and another_class(before, environment) else before
