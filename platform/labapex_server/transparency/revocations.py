"""Certificates that the log takes back. What is in the log stays; another entry says that it holds no more."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction

from labapex.certificate import CertificateBundle, Envelope, Revocation, RevocationStatus, Withdrawal, seal
from labapex.protocol.canonical import parse
from labapex_server.jobs.models import Job
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Missing
from labapex_server.transparency import certificates, services
from labapex_server.transparency.models import CertificateRecord, RevocationRecord


@transaction.atomic
def revoke(job: Job, *, dispute: UUID, ruling: str, reason: str) -> RevocationRecord | None:
    """Enter in the log that a job's certificate holds no more; commits with the ruling or not at all.

    `ruling`: its digest. None where the job has no certificate."""
    record = certificates.record_of(job)
    if record is None:
        return None
    statement = certificates.statement(record)
    withdrawal = Withdrawal(
        certificate=record.digest,
        job=job.pk,
        dispute=dispute,
        ruling=ruling,
        reason=reason[:4000],
        issued_at=clock.now().timestamp(),
    )
    envelope = seal(Revocation(subject=statement.subject, predicate=withdrawal), keys.verdict_key())
    return RevocationRecord.objects.create(entry_id=services.append(envelope.entry()), certificate=record)


def status(digest: str) -> RevocationStatus:
    """What the log says of the certificate with this digest. Raises `Missing` for none of ours."""
    record = CertificateRecord.objects.filter(digest=digest).first()
    if record is None:
        raise Missing("this platform's log holds no certificate with this digest")
    found = RevocationRecord.objects.select_related("entry").filter(certificate=record).first()
    if found is None:
        return RevocationStatus(certificate=digest, revoked=None)
    size = services.size()
    return RevocationStatus(
        certificate=digest,
        revoked=CertificateBundle(
            envelope=parse(Envelope, bytes(found.entry.leaf), limit=services.MAX_LEAF),
            inclusion=services.inclusion(found.entry_id, size),
            checkpoint=services.head(size).checkpoint,
        ),
    )
