"""Verdicts on record: signed once, and what a verified job's owner gets by them."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.db import transaction

from labapex.protocol.api import Stored
from labapex.protocol.states import JobState
from labapex.protocol.verdict import SignedVerdict, Verdict
from labapex.sealing import sign
from labapex_server.jobs import erasure
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock, keys, store
from labapex_server.lib.errors import Missing, NotFinishedYet, Refused
from labapex_server.marketplace.models import Lease
from labapex_server.verification import judgement
from labapex_server.verification.models import VerdictRecord


@transaction.atomic
def issue(lease: Lease, verdict: Verdict) -> bool:
    """Sign a verdict and put it on record, and let money move. False: one was given before, which stands."""
    job = Job.objects.get(pk=lease.job_id)
    if VerdictRecord.objects.filter(lease=lease).exists() or JobState(job.state) not in (
        JobState.CHALLENGED,
        JobState.VERIFYING,
    ):
        return False
    if not jobs.advance(job, JobState.SETTLING, reason=f"{verdict.verdict}: {verdict.reason}"):
        return False
    _record(lease, verdict)
    return True


@transaction.atomic
def replace(lease: Lease, verdict: Verdict) -> None:
    """Put a verdict in the place of the one that stands, as a ruling says. Money and states are the caller's matter."""
    VerdictRecord.objects.filter(lease=lease, stands=True).update(stands=False)
    _record(lease, verdict)


def _record(lease: Lease, verdict: Verdict) -> None:
    VerdictRecord.objects.create(
        lease=lease,
        job_id=lease.job_id,
        document=verdict.model_dump(mode="json"),
        key_id=keys.key_id(keys.verdict_public_key()),
        signature=sign(keys.verdict_key(), verdict),
        issued_at=clock.now(),
    )


def signed(job: Job) -> SignedVerdict:
    """The job's verdict. Raises `NotFinishedYet`."""
    record = VerdictRecord.objects.filter(job=job, stands=True).order_by("-issued_at").first()
    if record is None:
        raise NotFinishedYet(
            f"the job is {job.state} and has no verdict" + ("" if JobState(job.state).ended else " yet")
        )
    return SignedVerdict(
        verdict=Verdict.model_validate(record.document), key_id=record.key_id, signature=bytes(record.signature)
    )


def weights(job: Job) -> tuple[Path, str]:
    """The result of a verified job and its SHA-256; of one that was stopped, after its last verified epoch.

    Raises `NotFinishedYet`, `Gone` or `Refused`."""
    given = [signed(job).verdict]
    standing = VerdictRecord.objects.filter(job=job, stands=True).order_by("-issued_at")
    given += [Verdict.model_validate(each.document) for each in standing]
    verdict = next((each for each in given if 0 < each.verified_epochs <= job.paid_epochs), None)
    if verdict is None:
        if given[0].verdict != "verified":
            raise Refused("the job was rejected: nothing was paid, and there is no result")
        raise NotFinishedYet("the job is being settled; ask again in a moment")
    erasure.require(job, Stored.RESULTS)
    lease = Lease.objects.get(pk=verdict.lease)
    path = judgement.weights_path(lease, settings.LABAPEX.home)
    if verdict.weights is None or store.size(path) is None:
        raise Missing("the script kept no weights that could be extracted from its final state")
    return store.fetch(path), verdict.weights
