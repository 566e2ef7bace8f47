"""What a job may start from: certified models, found before the job is accepted. Jia et al. (2021), V-3."""

from __future__ import annotations

import re
from uuid import UUID

from labapex.protocol.api import JobRequest
from labapex.protocol.contract import Parent
from labapex.protocol.spec import PARENTS
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Refused
from labapex_server.transparency import certificates
from labapex_server.transparency.models import CertificateRecord
from labapex_server.verification import services as verification

_DIGEST = re.compile(r"[0-9a-f]{64}")
_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def submit(owner: User, *, request: JobRequest, idempotency_key: str | None = None) -> Job:
    """Accept a job, with the weights that it starts from among its files. Raises what `jobs.services.submit` does."""
    parents = [_parent(owner, number, name) for number, name in enumerate(request.spec.start_from)]
    return jobs.submit(owner, request=request, parents=parents, idempotency_key=idempotency_key)


def _parent(owner: User, number: int, name: str) -> Parent:
    """The certified model of this name, its file among the owner's uploads. Raises `Refused`."""
    if _JOB.fullmatch(name):
        record = _of_job(owner, UUID(name))
    elif _DIGEST.fullmatch(name):
        record = _of_certificate(owner, name)
    else:
        raise Refused(
            f"start_from: {name!r} is neither a job's id nor the digest of a certificate; a folder on your machine is taken"
            " along by `labapex run`"
        )
    return Parent(
        path=f"{PARENTS}/{number}.safetensors",
        weights=record.model,
        certificate=record.digest,
        success=certificates.statement(record).predicate.origin.success,
    )


def _of_job(owner: User, job_id: UUID) -> CertificateRecord:
    job = jobs.find(owner, job_id)
    if job is None:
        raise Refused(f"start_from: you have no job {job_id}; of another client's model you need file and certificate")
    record = certificates.record_of(job)
    if job.state != JobState.VERIFIED.value or record is None:
        why = "left no weights" if job.state == JobState.VERIFIED.value else f"is {job.state}"
        raise Refused(f"start_from: job {job_id} {why}; only the weights of a verified job are proven")
    path, digest = verification.weights(job)
    with path.open("rb") as file:
        blobs.store(owner, digest, file, size=path.stat().st_size)
    return record


def _of_certificate(owner: User, digest: str) -> CertificateRecord:
    record = CertificateRecord.objects.select_related("entry").filter(digest=digest).first()
    if record is None:
        raise Refused(f"start_from: this platform's log holds no certificate {digest}")
    if certificates.revocation(record) is not None:
        raise Refused(f"start_from: certificate {digest} was revoked: a dispute was ruled against its job")
    if blobs.find(owner, record.model) is None:
        raise Refused(
            f"start_from: certificate {digest} is of the file with SHA-256 {record.model}, which you did not upload; upload"
            " that very file first"
        )
    return record
