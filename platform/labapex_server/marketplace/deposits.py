"""Deposits: credit that a host's owner locks on it, and that is lost when the host is found to have lied.

A deposit is a hold of the ledger for no job. It is lost whole, in the transaction that puts the lie on record: to the client of
the job up to what the run would have cost her, as her budget comes back by itself and her time does not; the rest to the
guarantee.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from labapex.protocol.states import END_STATES
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Account, Transfer
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Missing
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding, Worker


def own(owner: User, worker_id: UUID) -> Worker:
    """The owner's worker. Raises `Missing`; another's does not exist for them."""
    found = Worker.objects.select_related("deposit").filter(pk=worker_id, owner=owner).first()
    if found is None:
        raise Missing("no worker of yours has this id")
    return found


def bound(worker: Worker) -> str | None:
    """Why a deposit cannot be lowered now; None: it can. It answers for each job of which the worker had the keys until that
    job's verdict stands: until then what it did there may yet be found false."""
    touched = Lease.objects.filter(worker=worker, key_released_at__isnull=False)
    live = Q(state__in=LIVE) | Q(key_released_at__isnull=False) & ~Q(job__state__in=[s.value for s in END_STATES])
    if Lease.objects.filter(live, worker=worker).exists():
        return "a job that it has worked on is not ended yet"
    if touched.filter(job__disputes__isnull=False, job__disputes__ruled_at=None).exists():
        return "a job that it has worked on is contested, and not ruled yet"
    window = timedelta(days=settings.LABAPEX.evidence_days)
    last = touched.filter(job__ended_at__gt=clock.now() - window).order_by("-job__ended_at").first()
    if last is None or last.job.ended_at is None:
        return None
    return f"a job that it has worked on can be contested until {last.job.ended_at + window:%Y-%m-%d %H:%M} UTC"


@transaction.atomic
def change(owner: User, worker_id: UUID, amount: int) -> Worker:
    """Lock `amount` micro-credits on a worker in place of what is locked; 0: take all back.

    Raises `Missing`, `NotEnoughCredit`, and `Conflict` where it would be lowered while it answers for a job."""
    own(owner, worker_id)
    worker = Worker.objects.select_for_update().get(pk=worker_id)  # nobody grants a job on a deposit that goes
    before = worker.deposit
    if amount < worker.deposited and (why := bound(worker)) is not None:
        raise Conflict(f"the deposit cannot be lowered now: {why}; it can be raised at any time")
    if amount and amount != worker.deposited:
        memo = f"deposit on {worker.name}"
        worker.deposit = ledger.deposit(ledger.account_of(owner), amount=amount, memo=memo, instead_of=before)
    elif not amount and before is not None:
        ledger.void(before)
        worker.deposit = None
    worker.save(update_fields=["deposit"])
    return worker


@transaction.atomic
def convict(lease: Lease, finding: Finding, *, reason: str, rule: str = "") -> list[Transfer]:
    """Put on record that what a lease did is false or was not shown. With that its worker's deposit is lost: returns what was
    paid out of it."""
    worker = Worker.objects.select_for_update().get(pk=lease.worker_id)
    lost = worker.deposit
    workers.mark(worker, finding, lease=lease.pk, rule=rule, reason=reason, deposit=lost)
    if lost is None:
        return []
    Worker.objects.filter(pk=worker.pk).update(deposit=None)
    price = lease.job.job_spec.epochs * (lease.price_per_epoch + lease.fee_per_epoch)
    hers = 0 if lease.job.owner_id == worker.owner_id else min(price, lost.amount)
    memo = f"the deposit on {worker.name} is lost: {reason}"[:200]
    parts: list[tuple[Account, int, str]] = [
        (ledger.account_of(lease.job.owner), hers, memo),
        (ledger.guarantee(), lost.amount - hers, memo),
    ]
    return ledger.settle(lost, payments=[part for part in parts if part[1]], job=lease.job_id)
