"""Which state wakes which task. The whole flow of a job through the platform's own stages reads here."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from kombu.exceptions import OperationalError

from labapex.protocol.states import JobState
from labapex_server.jobs.models import Job
from labapex_server.jobs.signals import advanced
from labapex_server.lib import clock

log = logging.getLogger(__name__)

STAGES: dict[JobState, str] = {
    JobState.SUBMITTED: "preflight",
    JobState.PACKAGING: "package",
    # QUEUED, LEASED and RUNNING wait for workers
    JobState.CHALLENGED: "challenge",  # and then it waits for the worker's opened states
    JobState.VERIFYING: "verify",
    JobState.SETTLING: "settle",
}


def connect() -> None:
    advanced.connect(_advanced, dispatch_uid="pipeline.conveyor")


def _advanced(*, job_id: UUID, state: JobState, **_: Any) -> None:
    if state in STAGES:
        ring(job_id, state)


def ring(job_id: UUID, state: JobState) -> bool:
    """Ask for a job's task. A broker that does not answer costs time only: the sweep rings again. False then."""
    from labapex_server.celery import app

    Job.objects.filter(pk=job_id).update(rung_at=clock.now())
    try:
        app.send_task(STAGES[state], args=[str(job_id)], retry=False)
    except (OperationalError, OSError) as error:
        log.warning("job %s: the broker does not answer, the sweep will ring again: %s", job_id, error)
        Job.objects.filter(pk=job_id).update(rung_at=None)
        return False
    return True
