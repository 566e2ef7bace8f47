"""From a verdict to a certificate in the public log, and from the log to what people ask: whose is this model?"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.db.models import Q, QuerySet

from labapex.certificate import (
    WEIGHTS,
    CertificateBundle,
    CertifiedCost,
    CertifiedRule,
    Envelope,
    Owner,
    PlatformKeys,
    Predicate,
    Statement,
    certificate_digest,
    seal,
    subjects,
)
from labapex.claims import Entry, Ruled, examine, rule
from labapex.protocol.canonical import digest, parse
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Verdict
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Missing, NotFinishedYet
from labapex_server.marketplace.models import Lease
from labapex_server.transparency import services
from labapex_server.transparency.models import CertificateRecord, RevocationRecord

MAX_CLAIMS = 50
"""Claims to one model that are ruled on one page: the first ones in the log."""


@transaction.atomic
def certify(lease: Lease, verdict: Verdict, *, paid: int | None = None) -> CertificateRecord | None:
    """Certify the result of a settled job and enter it in the log, once; commits with the settlement or not at all.
    `paid`: what it cost, in micro-credits, where that was not paid out of its budget.

    None where there is nothing to certify: the job was rejected, or left no weights."""
    if verdict.verdict != "verified" or verdict.weights is None:
        return None
    before = CertificateRecord.objects.filter(job=lease.job_id).first()
    if before is not None:
        return before
    made = _statement(lease, verdict, paid)
    envelope = seal(made, keys.verdict_key())
    index = services.append(envelope.entry())
    return CertificateRecord.objects.create(
        entry_id=index,
        job_id=lease.job_id,
        digest=certificate_digest(made.payload()),
        model=made.model,
        manifest=made.subject[0].digest.sha256,
        parents=list(made.predicate.parents),
    )


def _statement(lease: Lease, verdict: Verdict, paid: int | None) -> Statement:
    job = Job.objects.select_related("owner", "hold").get(pk=lease.job_id)
    terms, cost = lease.terms, verdict.cost
    assert verdict.weights is not None
    return Statement(
        subject=subjects(job.name, {WEIGHTS: verdict.weights}),
        predicate=Predicate(
            client=Owner(id=keys.pseudonym(f"client:{job.owner_id}"), name=job.owner.public_name or None),
            job=job.pk,
            lease=lease.pk,
            contract=verdict.contract,
            code=terms.code,
            data=terms.data,
            proof_root=verdict.proof_root,
            verdict=digest(verdict),
            rules=tuple(
                CertifiedRule(rule=each.rule, result=each.result, weight=each.weight) for each in verdict.rules
            ),
            detection=verdict.detection,
            epochs=terms.epochs,
            iterations=terms.iterations,
            worker_environment=verdict.worker_environment,
            verifier_environment=verdict.verifier_environment,
            cost=CertifiedCost(
                paid=ledger.outcome(job.hold).paid if paid is None else paid,
                train_seconds=cost.train_seconds,
                verify_seconds=cost.verify_seconds,
                opened_bytes=cost.opened_bytes,
                all_checkpoint_bytes=cost.all_checkpoint_bytes,
            ),
            contracted_at=lease.granted_at.timestamp(),
            issued_at=clock.now().timestamp(),
            parents=tuple(dict.fromkeys(parent.certificate for parent in terms.parents)),
            origin=verdict.origin,
        ),
    )


# -- reading -----------------------------------------------------------------------------------------------------------


def public_keys() -> PlatformKeys:
    """What a reader of certificates pins."""
    return PlatformKeys(verdict=keys.verdict_public_key(), log=keys.log_public_key())


def record_of(job: Job) -> CertificateRecord | None:
    return CertificateRecord.objects.select_related("entry").filter(job=job).first()


def bundle(job: Job) -> CertificateBundle:
    """A job's certificate with the proof that the log of its present head holds it. Raises `NotFinishedYet`, `Missing`."""
    record = record_of(job)
    if record is None:
        if not JobState(job.state).ended:
            raise NotFinishedYet(f"the job is {job.state}; its certificate comes with its settlement")
        raise Missing("this job has no certificate: only verified weights get one")
    size = services.size()
    return CertificateBundle(
        envelope=envelope(record),
        inclusion=services.inclusion(record.entry_id, size),
        checkpoint=services.head(size).checkpoint,
    )


def revocation(record: CertificateRecord) -> RevocationRecord | None:
    """The later entry of the log that takes it back, if there is one."""
    return RevocationRecord.objects.filter(certificate=record).first()


def envelope(record: CertificateRecord) -> Envelope:
    return parse(Envelope, bytes(record.entry.leaf), limit=services.MAX_LEAF)


def statement(record: CertificateRecord) -> Statement:
    """What the platform certified. It is read from the log, not checked again."""
    return parse(Statement, envelope(record).body(), limit=services.MAX_LEAF)


def search(model: str = "") -> QuerySet[CertificateRecord]:
    """Certificates, the newest first; of one model where its digest is given."""
    rows = CertificateRecord.objects.select_related("entry").order_by("-entry_id")
    return rows.filter(Q(model=model) | Q(manifest=model)) if model else rows


def look_up(digest: str) -> QuerySet[CertificateRecord]:
    """The certificates of a model, or the one of this very digest."""
    return search().filter(Q(model=digest) | Q(manifest=digest) | Q(digest=digest))


def claims(model: str) -> list[Ruled]:
    """All claims to the model with this SHA-256, the one that holds first. Raises `Missing`."""
    rows = list(search(model).order_by("entry_id")[:MAX_CLAIMS])
    if not rows:
        raise Missing("nobody holds a certificate of a model with this digest")
    places, parents = _ancestry(rows)
    public = keys.verdict_public_key()
    gone = {row.digest for row in rows if revocation(row) is not None}
    return rule([examine(model, Entry(row.entry_id, envelope(row)), public, places, gone) for row in rows], parents)


def _ancestry(rows: Sequence[CertificateRecord]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Index and parents of the claims and all their ancestors, by digest."""
    places = {row.digest: row.entry_id for row in rows}
    parents: dict[str, list[str]] = {row.digest: row.parents for row in rows}
    missing = {parent for row in rows for parent in row.parents} - places.keys()
    while missing and len(places) < 10_000:
        found = list(CertificateRecord.objects.filter(digest__in=list(missing)[:500]))
        places.update({row.digest: row.entry_id for row in found})
        parents.update({row.digest: row.parents for row in found})
        asked = missing if len(missing) <= 500 else {row.digest for row in found}
        missing = ({parent for row in found for parent in row.parents} | missing) - places.keys() - asked
    return places, parents


def publish_name(user: User, name: str) -> None:
    """The name in this user's certificates from now on; none if empty. What is in the log stays as it is."""
    User.objects.filter(pk=user.pk).update(public_name=name)
