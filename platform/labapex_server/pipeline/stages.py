"""One turn of work on one job: claim its row, do what its state asks for, apply by compare-and-swap.

Whatever happens in between, the row says where to go on: a killed process loses its claim and someone else takes over.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import F

from labapex.errors import LabApexError, SandboxUnavailable
from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import Verdict
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.jobs.states import allowed
from labapex_server.lib import clock, logs
from labapex_server.lib.store import StoreSilent
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import tally
from labapex_server.pipeline.tally import Outcome
from labapex_server.transparency import certificates
from labapex_server.verification import services as verification
from labapex_server.verification.models import VerdictRecord

log = logging.getLogger(__name__)

Beat = Callable[[], None]


class ClaimLost(Exception):
    """Someone else works on this job now, or its state changed: what was begun is of no use any more."""


def preflight(job: Job, beat: Beat) -> None:
    verification.preflight(job, beat=beat)


def package(job: Job, beat: Beat) -> None:
    jobs.package(job)


def resume(job: Job, beat: Beat) -> None:
    if marketplace.stopped_lease(job) is None:
        verification.resume(job, beat=beat)
    else:
        verification.wind_up(job, beat=beat)


def challenge(job: Job, beat: Beat) -> None:
    verification.challenge(_finished(job))


def verify(job: Job, beat: Beat) -> None:
    verification.verify(_finished(job), beat=beat)


def _finished(job: Job) -> Lease:
    lease = verification.finished_lease(job)
    logs.about(lease=lease.pk, worker=lease.worker_id)
    return lease


@transaction.atomic
def settle(job: Job, beat: Beat) -> None:
    """Money moves, and the certificate of a job that is verified to its end enters the public log: both or neither."""
    record = VerdictRecord.objects.select_related("lease__worker__owner").filter(job=job).latest("issued_at")
    logs.about(lease=record.lease_id, worker=record.lease.worker_id)
    verdict = Verdict.model_validate(record.document)
    if (
        marketplace.settle(record.lease, verdict, verification.resumed_by(record.lease))
        and record.lease.terms.stopped is None
    ):
        certificates.certify(record.lease, verdict)


def work(job_id: UUID, state: JobState, stage: Callable[[Job, Beat], None]) -> bool:
    """Do one stage of a job if it waits for it and nobody else does. False: there was nothing to do."""
    owner = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(8)}"
    seconds = settings.LABAPEX.claim_seconds
    job = jobs.claim(job_id, state, owner, seconds)
    if job is None:
        return False
    with logs.on(task=stage.__name__, job=job_id):
        tally.counted(stage.__name__, lambda: _attempt(job, state, owner, stage))
    return True


def _attempt(job: Job, state: JobState, owner: str, stage: Callable[[Job, Beat], None]) -> Outcome:
    if job.stage_attempts > settings.LABAPEX.max_attempts and allowed(state, JobState.FAILED):
        attempts = job.stage_attempts - 1
        return _give_up(
            job, f"the platform gave up after {attempts} attempts at this stage; during the last it was stopped"
        )

    def beat() -> None:
        try:
            renewed = jobs.renew_claim(job.pk, state, owner, settings.LABAPEX.claim_seconds)
        except DatabaseError:  # what a child has computed for an hour is not to be lost with a connection
            if connection.is_usable():
                raise
            connection.close()
            renewed = jobs.renew_claim(job.pk, state, owner, settings.LABAPEX.claim_seconds)
        if not renewed:
            raise ClaimLost(f"job {job.pk} is no longer {state} or in other hands")

    try:
        stage(job, beat)
    except ClaimLost as lost:
        log.info("%s", lost)
        return Outcome.LOST
    except SandboxUnavailable as error:  # trying again mends nothing
        log.error("job %s: %s", job.pk, error)
        return _give_up(job, "the platform cannot run foreign code safely at the moment; nothing was charged")
    except StoreSilent:
        return _excuse(job, owner)
    except Exception as error:
        if isinstance(error, DatabaseError) and not connection.is_usable():
            log.warning("job %s: the connection to the database was lost at stage %s: %s", job.pk, state, error)
            connection.close()
            return _excuse(job, owner)
        log.exception("job %s failed at stage %s, attempt %d", job.pk, state, job.stage_attempts)
        if job.stage_attempts < settings.LABAPEX.max_attempts or not allowed(state, JobState.FAILED):
            return _rest(job, owner)
        cause = str(error) if isinstance(error, LabApexError) else "an error of its own, which its log has"
        attempts = job.stage_attempts
        return _give_up(job, f"the platform gave up after {attempts} attempts at this stage; the last: {cause}")
    jobs.release_claim(job.pk, owner)
    return Outcome.DONE


def _excuse(job: Job, owner: str) -> Outcome:
    """What came between passes, and is no attempt of the job's."""
    Job.objects.filter(pk=job.pk, claimed_by=owner).update(stage_attempts=F("stage_attempts") - 1)
    return _rest(job, owner)


def _rest(job: Job, owner: str) -> Outcome:
    """Keep the job from being tried again at once: 2, 4, 8 .. seconds."""
    pause = timedelta(seconds=min(300, 2**job.stage_attempts))
    Job.objects.filter(pk=job.pk, claimed_by=owner).update(
        claimed_by="", claimed_until=clock.now() + pause, rung_at=None, version=F("version") + 1
    )
    return Outcome.FAILED


def _give_up(job: Job, reason: str) -> Outcome:
    jobs.advance(job, JobState.FAILED, reason=reason, fault=Fault.PLATFORM)
    return Outcome.GIVEN_UP
