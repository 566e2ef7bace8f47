"""What a job waits for, in words, where no host takes it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from itertools import chain
from uuid import UUID

from django.conf import settings

from labapex.protocol.limits import Limits
from labapex.protocol.states import JobState
from labapex_server.jobs import services as jobs
from labapex_server.jobs.limits import of_script
from labapex_server.jobs.models import Job, Transition
from labapex_server.ledger.services import credits_text
from labapex_server.marketplace.matching import Host, lacking, meets
from labapex_server.marketplace.offers import busy, connected
from labapex_server.marketplace.pricing import estimate, work_of
from labapex_server.workers.models import Worker

_AT_ONCE = 200


def explain_waiting() -> int:
    """Say of each job that waits what it waits for, where no host takes it as it is. Returns of how many the words changed."""
    waiting = list(Job.objects.filter(state=JobState.QUEUED.value).order_by("turn_at")[:_AT_ONCE])
    if not waiting:
        return 0
    workers = connected()
    taken = busy(workers)
    queued = Transition.objects.filter(job__in=waiting, after=JobState.QUEUED.value).order_by("pk")
    said: dict[UUID, str] = dict(queued.values_list("job_id", "reason"))  # the last of each
    changed = 0
    for job in waiting:
        why = _why(job, workers, taken)
        reason = f"{said[job.pk]}; {why}" if why else said[job.pk]
        changed += reason != job.reason and jobs.say(job, reason)
    return changed


def _why(job: Job, workers: Sequence[Worker], taken: Set[UUID]) -> str | None:
    """Why no host takes a job; None where one might at any moment."""
    wanted = job.job_spec
    if (missing := lacking([Host.of(worker) for worker in workers], wanted)) is not None:
        return missing
    fitting = [worker for worker in workers if meets(Host.of(worker), wanted)]
    asked = of_script(wanted)
    short = {worker.pk: asked.beyond(Limits.model_validate(worker.room)) for worker in fitting if worker.room}
    fitting = [worker for worker in fitting if not short.get(worker.pk)]
    if not fitting:
        return f"no host that fits has the {' and '.join(sorted(set(chain(*short.values()))))} that it asks for"
    fee = settings.LABAPEX.fee_basis_points
    costs = {worker.pk: estimate(**work_of(job, worker.price_per_hour), fee_basis_points=fee) for worker in fitting}
    if (least := min(costs.values())) > job.budget:
        return f"no host for its budget of {credits_text(job.budget)} credits; the cheapest that fits takes {credits_text(least)}"
    left = [pk for pk, cost in costs.items() if cost <= job.budget]
    if taken >= set(left):
        return "the host that fits is busy" if len(left) == 1 else f"the {len(left)} hosts that fit are busy"
    return None
