"""The other end of a settled job: what a ruling against its verdict does to money, job, leases and the hosts' records.

Nobody waits for the window to close: a rejected job's budget went back at once, a verified one's worker was paid at once. So the
guarantee, an account of the platform's, makes the wronged side good at once, and takes back what the other side still has.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction

from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Verdict
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.deposits import convict
from labapex_server.marketplace.models import Lease
from labapex_server.marketplace.settlement import shares
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding, Mark


@dataclass(frozen=True)
class Movement:
    """Money that a ruling moved, in micro-credits. None: the guarantee."""

    payer: User | None
    payee: User | None
    amount: int
    why: str


@transaction.atomic
def pay_after_all(lease: Lease, contested: Verdict, verdict: Verdict, *, reason: str) -> list[Movement]:
    """A rejected run was honest: its hosts are paid by the guarantee, which takes as much as she has from the client, who gets
    what she had ordered; the job is verified as `verdict` says, and what was said of the host does not count. Within the ruling's
    transaction.

    Raises `Conflict` where the job is not rejected any more."""
    job = Job.objects.select_related("owner").get(pk=lease.job_id)
    terms = lease.terms
    stopped = terms.stopped is not None
    due_parts = shares(lease, paid=job.paid_epochs)
    _move(job, JobState.CANCELLED if stopped else JobState.VERIFIED, reason, Fault.CLIENT if stopped else Fault.NOBODY)
    Job.objects.filter(pk=job.pk).update(paid_epochs=verdict.verified_epochs)
    moved = []
    for part in due_parts:
        account, amount, memo = part.payment
        ledger.make_good(account, amount=amount, job=job.pk, memo=memo)
        moved.append(Movement(None, part.lease.worker.owner, amount, memo))
    due = sum(each.amount for each in moved)
    memo = "for a run that was wrongly rejected, and now counts as verified"
    if due and (taken := ledger.reclaim(ledger.account_of(job.owner), most=due, job=job.pk, memo=memo)):
        moved.append(Movement(job.owner, None, taken, memo))
    hosts = [each.lease for each in terms.handovers]
    Lease.objects.filter(pk__in=[*hosts, lease.pk]).update(state=LeaseState.SETTLED.value)
    accused = Lease.objects.select_related("worker").get(pk=contested.blamed or lease.pk)
    workers.mark(accused.worker, Finding.REVERSED, lease=accused.pk, reason=reason)
    return moved


@transaction.atomic
def take_back(lease: Lease, verdict: Verdict, *, reason: str) -> list[Movement]:
    """A verified run is false, as `verdict` says: the client gets back all that it cost, from the guarantee, which takes as much
    as he has from the host whose part is false; its deposit is lost besides, and other hosts keep their pay. Within the
    ruling's transaction.

    Raises `Conflict` where the job is not verified any more."""
    job = Job.objects.select_related("owner").get(pk=lease.job_id)
    _move(job, JobState.REJECTED, reason, Fault.WORKER)
    false = Lease.objects.select_related("job__owner", "worker__owner").get(pk=verdict.blamed or lease.pk)
    Lease.objects.filter(pk=false.pk).update(state=LeaseState.REJECTED.value)
    Job.objects.filter(pk=job.pk).update(paid_epochs=0)
    words = f"ruled false: {reason}"  # before an account is locked: who changes a deposit locks its worker first
    lost = convict(false, Finding.FALSE, rule=verdict.deciding_rule or "", reason=words)
    account = ledger.account_of(job.owner)
    moved, paid, back = [], ledger.spent(account, job=job.pk), ledger.refundable(account, job=job.pk)
    if back > 0:  # an operator may have refunded some of it before
        memo = "given back: what was verified is false"
        ledger.make_good(account, amount=back, job=job.pk, memo=memo)
        moved.append(Movement(None, job.owner, back, memo))
    if paid:
        memo = f"taken back: what {false.worker.name} was paid for is false"
        if taken := ledger.reclaim(ledger.account_of(false.worker.owner), most=paid, job=job.pk, memo=memo):
            moved.append(Movement(false.worker.owner, None, taken, memo))
    return [*moved, *(Movement(false.worker.owner, part.credit.user, part.amount, part.memo) for part in lost)]


@transaction.atomic
def give_back_deposit(lease: Lease, contested: Verdict) -> list[Movement]:
    """What a host that was wrongly accused had lost of its deposit comes back to its owner, from the guarantee, which takes the
    client's part from her as far as she has it. It is no pay, and no deposit any more: he may lock it again. Within the ruling's
    transaction, after `pay_after_all`."""
    accused = Lease.objects.select_related("worker__owner", "job__owner").get(pk=contested.blamed or lease.pk)
    marks = Mark.objects.filter(lease=accused.pk, deposit__isnull=False).select_related("deposit")
    lost = [each.deposit for each in marks if each.deposit is not None]
    if not lost:
        return []
    owner, client, job = accused.worker.owner, accused.job.owner, accused.job
    amount, memo = sum(each.amount for each in lost), f"the deposit on {accused.worker.name} was wrongly lost"
    ledger.make_good(ledger.account_of(owner), amount=amount, job=None, memo=memo)
    moved = [Movement(None, owner, amount, memo)]
    account = ledger.account_of(client)
    hers = sum(part.amount for each in lost for part in each.settlements.filter(credit=account))
    if hers and (taken := ledger.reclaim(account, most=hers, job=job.pk, memo=memo)):
        moved.append(Movement(client, None, taken, memo))
    return moved


def _move(job: Job, to: JobState, reason: str, fault: Fault) -> None:
    before = JobState.VERIFIED if to is JobState.REJECTED else JobState.REJECTED
    if job.state != before.value or not jobs.advance(job, to, reason=reason, fault=fault):
        raise Conflict(f"the job is {job.state}; nothing was moved")
