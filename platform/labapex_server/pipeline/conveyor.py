"""Which state wakes which task. The whole flow of a job through the platform's own stages reads here."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from kombu.exceptions import OperationalError

from labapex.protocol.states import JobState
from labapex_server.disputes.models import Dispute
from labapex_server.disputes.signals import opened
from labapex_server.jobs.models import Job
from labapex_server.jobs.signals import advanced
from labapex_server.lib import clock
from labapex_server.verification.signals import answered

log = logging.getLogger(__name__)

STAGES: dict[JobState, str] = {
    JobState.SUBMITTED: "preflight",
    JobState.PACKAGING: "package",
    # QUEUED, LEASED and RUNNING wait for workers
    JobState.RESUMING: "resume",
    JobState.CHALLENGED: "challenge",  # between what the worker shows
    JobState.VERIFYING: "verify",
    JobState.SETTLING: "settle",
}


def connect() -> None:
    advanced.connect(_advanced, dispatch_uid="pipeline.conveyor")
    answered.connect(_answered, dispatch_uid="pipeline.answered")
    opened.connect(_opened, dispatch_uid="pipeline.opened")


def _advanced(*, job_id: UUID, state: JobState, **_: Any) -> None:
    if state in STAGES:
        ring(job_id, state)


def _answered(*, job_id: UUID, **_: Any) -> None:
    ring(job_id, JobState.CHALLENGED)


def _opened(*, dispute_id: UUID, **_: Any) -> None:
    ring_dispute(dispute_id)


def ring(job_id: UUID, state: JobState) -> bool:
    """Ask for a job's task. A broker that does not answer costs time only: the sweep rings again. False then."""
    Job.objects.filter(pk=job_id).update(rung_at=clock.now())
    if ring_for(STAGES[state], str(job_id)):
        return True
    Job.objects.filter(pk=job_id).update(rung_at=None)
    return False


def ring_dispute(dispute_id: UUID) -> bool:
    """The same for an open dispute."""
    Dispute.objects.filter(pk=dispute_id).update(rung_at=clock.now())
    if ring_for("dispute", str(dispute_id)):
        return True
    Dispute.objects.filter(pk=dispute_id).update(rung_at=None)
    return False


def ring_for(task: str, *args: str) -> bool:
    """Ask for a task. False: the broker does not answer."""
    from labapex_server.celery import app

    try:
        app.send_task(task, args=args, retry=False)
    except (OperationalError, OSError) as error:
        log.warning("%s: the broker does not answer, the sweep will ring again: %s", " ".join((task, *args)), error)
        return False
    return True
