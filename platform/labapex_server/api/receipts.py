"""Where a job's money went, read from the ledger itself, so that a receipt cannot say anything else."""

from __future__ import annotations

from labapex.protocol.canonical import Message
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Payment, Receipt
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib.errors import NotFinishedYet
from labapex_server.marketplace import services as marketplace
from labapex_server.verification.models import VerdictRecord


class PublicKey(Message):
    key_id: str
    public_key: str  # base64


def receipt(job: Job) -> Receipt:
    """Raises `NotFinishedYet` while money is still held."""
    if not JobState(job.state).ended:
        raise NotFinishedYet(f"the job is {job.state}; its receipt comes when it has ended")
    money = ledger.outcome(job.hold)
    verified = VerdictRecord.objects.select_related("lease").filter(job=job, document__verdict="verified")
    verdict = verified.order_by("-issued_at").first()  # of a job that was resumed the last one covers all before it
    shares = marketplace.shares(verdict.lease) if verdict is not None and money.paid else []
    return Receipt(
        job=job.pk,
        held=money.held,
        paid=money.paid,
        fee=money.fee,
        refunded=money.refunded,
        price_per_epoch=job.price_per_epoch or 0,
        verified_epochs=job.paid_epochs,
        payments=tuple(
            Payment(
                worker=share.lease.worker.name,
                epochs=share.epochs,
                price_per_epoch=share.lease.price_per_epoch,
                amount=share.amount,
            )
            for share in shares
        ),
        reason=job.reason,
    )
