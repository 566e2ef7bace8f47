"""What a worker's judged jobs brought its owner, read from the ledger itself, so that no list can say anything else."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from django.db.models import F, Q, Sum

from labapex.protocol.api import Earning, Earnings
from labapex.protocol.states import LeaseState
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import GUARANTEE, POSTED, Transfer
from labapex_server.marketplace import services as marketplace
from labapex_server.verification.models import VerdictRecord
from labapex_server.workers.models import Worker

PAGE = 200


def of(worker: Worker, *, skip: int) -> Earnings:
    """The settled jobs of a worker, oldest first, at most `PAGE` from the one after `skip`. The list only ever grows.

    Of a run that several hosts made: what this one was paid, for the epochs that ended on it."""
    settled = VerdictRecord.objects.filter(
        stands=True,
        job__leases__worker=worker,
        job__leases__state=LeaseState.SETTLED.value,
        job__leases__granted_at__lt=F("issued_at"),  # of a job that was resumed not those before its part
        lease__state=LeaseState.SETTLED.value,
    ).distinct()
    rows = settled.select_related("lease", "job").order_by("lease__ended_at", "pk")[skip : skip + PAGE]
    paid = paid_to(rows, worker.owner)
    found = []
    for row in rows:
        ended = row.lease.ended_at
        assert ended is not None  # set together with the state
        found.append(
            Earning(
                job=row.job_id,
                name=row.job.name,
                verdict=row.document["verdict"],
                verified_epochs=_epochs(row, worker),
                paid=paid.get((row.pk, worker.pk), 0),
                settled_at=ended.timestamp(),
            )
        )
    return Earnings(results=tuple(found), total=settled.count())


def paid_to(judged: Iterable[VerdictRecord], owner: User) -> dict[tuple[int, UUID], int]:
    """Micro-credits that verdicts paid to an owner for the work of a worker, by verdict and worker."""
    rows = [row for row in judged if row.document["verdict"] == "verified"]
    alone = {row.job_id: (row.pk, row.lease.worker_id) for row in rows if not _in_parts(row)}
    found = {alone[job]: amount for job, amount in paid_for(alone, owner).items()}
    for row in filter(_in_parts, rows):
        for share in _shares(row):
            if share.lease.worker.owner_id == owner.pk:
                key = row.pk, share.lease.worker_id
                found[key] = found.get(key, 0) + share.amount
    return found


def _in_parts(row: VerdictRecord) -> bool:
    """Whether several hosts made a run, or it was stopped: else all that its job paid is one host's, by one verdict."""
    return bool(row.lease.contract.get("handovers") or row.lease.contract.get("stopped"))


def _shares(row: VerdictRecord) -> list[marketplace.Share]:
    """What is due to each host of such a run is what was paid. What an earlier verdict on the same job paid is not among it."""
    before = VerdictRecord.objects.filter(
        job=row.job_id, stands=True, issued_at__lt=row.issued_at, document__verdict="verified"
    )
    paid = max((each["verified_epochs"] for each in before.values_list("document", flat=True)), default=0)
    return marketplace.shares(row.lease, paid=paid)


def _epochs(row: VerdictRecord, worker: Worker) -> int:
    """Verified epochs that ended on a worker."""
    if row.document["verdict"] != "verified" or not _in_parts(row):
        return int(row.document["verified_epochs"])
    return sum(share.epochs for share in _shares(row) if share.lease.worker_id == worker.pk)


def paid_for(jobs: Iterable[UUID], owner: User) -> dict[UUID, int]:
    """Micro-credits that each of these jobs paid to a worker's owner, less what a ruling took back; the rest of his own budget
    is no pay."""
    of_jobs = Transfer.objects.filter(status=POSTED, job__in=list(jobs))
    paid = of_jobs.filter(Q(hold__job__isnull=False) | Q(debit__kind=GUARANTEE), credit__user=owner)
    found: dict[UUID, int] = dict.fromkeys(jobs, 0)
    for rows, sign in (
        (paid.exclude(hold__debit=F("credit"), memo__in=ledger.RESTS), 1),
        (of_jobs.filter(debit__user=owner, credit__kind=GUARANTEE, hold__isnull=True), -1),
    ):
        for job, total in rows.values_list("job").annotate(total=Sum("amount")):
            assert job is not None  # they were found by it
            found[job] += sign * total
    return {job: total for job, total in found.items() if total > 0}
