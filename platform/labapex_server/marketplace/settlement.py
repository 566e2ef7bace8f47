"""Settlement: what is due to each host of a run, and the end of job and lease as the verdict says."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import transaction

from labapex.protocol.contract import Stint
from labapex.protocol.states import JobState, LeaseState
from labapex.protocol.verdict import Verdict
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Account
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.changes import try_change
from labapex_server.marketplace.models import Lease


@transaction.atomic
def settle(lease: Lease, verdict: Verdict) -> bool:
    """Move the money as the verdict says and end job and lease, all or nothing. False: it was done before."""
    job = Job.objects.select_related("hold").get(pk=lease.job_id)
    if job.state != JobState.SETTLING.value:
        return False
    verified = verdict.verdict == "verified"
    if job.hold is not None:  # a proven cheat forfeits the whole job, whoever's it was
        ledger.settle(job.hold, payments=[part.payment for part in shares(lease)] if verified else [])
    ending: str = verdict.verdict
    if verdict.blamed not in (None, lease.pk):
        ending = "what an earlier host of the run had done is false"
        Lease.objects.filter(pk=verdict.blamed).update(state=LeaseState.REJECTED.value, reason=verdict.reason)
    try_change(lease, LeaseState.FINISHED, LeaseState.SETTLED, ended_at=clock.now(), reason=ending)
    if verified:  # it stood as lost until now
        earlier = [each["lease"] for each in lease.contract.get("handovers", ())]
        Lease.objects.filter(pk__in=earlier).update(state=LeaseState.SETTLED.value)
    to = JobState.VERIFIED if verified else JobState.REJECTED
    if not jobs.advance(job, to, reason=verdict.reason, fault=verdict.fault):
        raise Conflict("the job was settled by someone else")
    return True


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
    def payment(self) -> tuple[Account, int, str]:
        price = ledger.credits_text(self.lease.price_per_epoch)
        memo = f"{self.epochs} verified epochs at {price} on {self.lease.worker.name}"
        return ledger.account_of(self.lease.worker.owner), self.amount, memo


def shares(lease: Lease) -> list[Share]:
    """What is due to the hosts of a verified run, in their order; `lease` is the last one's. No price is more than the budget
    has for an epoch, and each epoch is one host's: together they never exceed it."""
    terms = lease.terms
    stints = terms.stints()
    per_epoch = terms.facts.iterations_per_epoch
    found = {
        each.pk: each for each in Lease.objects.select_related("worker__owner").filter(pk__in=[s.lease for s in stints])
    }
    made = [Share(found[s.lease], s, s.stop // per_epoch - s.start // per_epoch) for s in stints]
    return [share for share in made if share.epochs]
