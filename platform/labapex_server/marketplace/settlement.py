"""Settlement: what is due to each host of a run, and the end of job and lease as the verdict says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction

from labapex.protocol.contract import Handover, Stint
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Verdict
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Account
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.changes import try_change
from labapex_server.marketplace.deposits import convict
from labapex_server.marketplace.models import Lease
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding


@transaction.atomic
def settle(lease: Lease, verdict: Verdict, resumed_by: Sequence[Handover] = ()) -> bool:
    """Move the money as the verdict says, end job and lease, and write down what it says of the hosts, all or nothing.

    `resumed_by`: how a job that was stopped may go on later. False: it was done before."""
    job = Job.objects.select_related("hold").get(pk=lease.job_id)
    if job.state != JobState.SETTLING.value:
        return False
    verified = verdict.verdict == "verified"
    terms = lease.terms
    due = shares(lease, paid=job.paid_epochs) if verified else []
    if job.hold is not None:  # a proven cheat forfeits the whole job, whoever's it was
        ledger.settle(job.hold, payments=[*(part.payment for part in due), *_fee(due)])
    ending: str = verdict.verdict
    if verdict.blamed not in (None, lease.pk):
        ending = "what an earlier host of the run had done is false"
        Lease.objects.filter(pk=verdict.blamed).update(state=LeaseState.REJECTED.value, reason=verdict.reason)
    try_change(lease, LeaseState.FINISHED, LeaseState.SETTLED, ended_at=clock.now(), reason=ending)
    if verified:  # it stood as lost until now
        Lease.objects.filter(pk__in=[each.lease for each in terms.handovers]).update(state=LeaseState.SETTLED.value)
        _mark_verified(job, due)
    else:
        _mark_rejected(Lease.objects.select_related("job").get(pk=verdict.blamed or lease.pk), verdict)
    if not _end(job, verdict, due, resumed_by, stopped=terms.stopped is not None):
        raise Conflict("the job was settled by someone else")
    return True


def _end(job: Job, verdict: Verdict, due: list[Share], resumed_by: Sequence[Handover], *, stopped: bool) -> bool:
    """The job's end state, with the reason. False: it was in another state."""
    if verdict.verdict != "verified":
        return jobs.advance(job, JobState.REJECTED, reason=verdict.reason, fault=verdict.fault)
    epochs = verdict.verified_epochs
    if not stopped:
        return jobs.advance(job, JobState.VERIFIED, reason=verdict.reason, fault=verdict.fault, paid_epochs=epochs)
    paid, paid_for = sum(part.amount + part.fee for part in due), sum(part.epochs for part in due)
    back = (job.hold.amount if job.hold is not None else paid) - paid
    reason = (
        f"stopped by its owner: {epochs} of {verdict.epochs} epochs are verified; {paid_for} of them are paid now with"
        f" {ledger.credits_text(paid)} credits, {ledger.credits_text(back)} are given back"
    )
    handovers = [each.model_dump(mode="json") for each in resumed_by]
    return jobs.advance(
        job, JobState.CANCELLED, reason=reason, fault=Fault.CLIENT, paid_epochs=epochs, handovers=handovers
    )


def _mark_verified(job: Job, due: list[Share]) -> None:
    """To the credit of each host that is paid, once a job; nobody vouches for himself by jobs of his own."""
    for host in {part.lease.worker_id: part.lease for part in due}.values():
        if host.worker.owner_id != job.owner_id:
            workers.mark(host.worker, Finding.VERIFIED, lease=host.pk, reason=f"job {job.pk} was verified")


def _mark_rejected(blamed: Lease, verdict: Verdict) -> None:
    """What is not shown counts as a lie: else whoever saw what was drawn would rather be late."""
    rule = verdict.deciding_rule or ""
    finding = Finding.UNOPENED if rule == "opening" else Finding.FALSE
    convict(blamed, finding, rule=rule, reason=verdict.reason)


@dataclass(frozen=True)
class Share:
    """What is due to one host of a verified run."""

    lease: Lease
    stint: Stint
    epochs: int  # that ended in its stint

    @property
    def amount(self) -> int:
        """Micro-credits, at its own price."""
        return self.epochs * self.lease.price_per_epoch

    @property
    def fee(self) -> int:
        """Micro-credits, to the platform."""
        return self.epochs * self.lease.fee_per_epoch

    @property
    def payment(self) -> tuple[Account, int, str]:
        price = ledger.credits_text(self.lease.price_per_epoch)
        memo = f"{self.epochs} verified epochs at {price} on {self.lease.worker.name}"
        return ledger.account_of(self.lease.worker.owner), self.amount, memo


def _fee(due: list[Share]) -> list[tuple[Account, int, str]]:
    fee = sum(part.fee for part in due)
    return [(ledger.fees(), fee, "the platform's fee")] if fee else []


def shares(lease: Lease, *, paid: int = 0) -> list[Share]:
    """What is due to the hosts of a verified run, in their order, for the epochs after the first `paid`; `lease` is the last
    one's. No price is more than the budget has for an epoch, and each epoch is one host's: together they never exceed it."""
    terms = lease.terms
    stints = terms.stints()
    per_epoch = terms.facts.iterations_per_epoch
    found = {
        each.pk: each for each in Lease.objects.select_related("worker__owner").filter(pk__in=[s.lease for s in stints])
    }
    made = [Share(found[s.lease], s, max(paid, s.stop // per_epoch) - max(paid, s.start // per_epoch)) for s in stints]
    return [share for share in made if share.epochs]
