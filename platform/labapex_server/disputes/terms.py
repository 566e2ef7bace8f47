"""Who may contest which verdict, until when, and what it costs: a re-execution, paid by whoever was wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from labapex.errors import NotEnoughCredit
from labapex.protocol.ruling import Outcome, Side
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Verdict
from labapex_server.accounts.models import User
from labapex_server.disputes.models import Dispute
from labapex_server.disputes.signals import opened
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict, Missing
from labapex_server.marketplace import pricing
from labapex_server.marketplace.models import Lease
from labapex_server.verification.models import VerdictRecord

CONTESTABLE = ("opening", "initialisation", "batch-order", "point-loss", "replay", "leaf-claims")
"""Rules that a re-execution can prove wrong. What the log itself shows, a gap or another's states, it cannot change."""


@dataclass(frozen=True)
class Terms:
    """What it means for one party to contest the verdict on a job. `stake` in micro-credits."""

    job: Job
    record: VerdictRecord
    side: Side
    stake: int
    until: datetime
    obstacle: str | None  # why it cannot be contested; None: it can


def terms(user: User, job_id: UUID) -> Terms:
    """Raises `Missing` for a job of which the user is no party, or that has no verdict."""
    job = Job.objects.select_related("owner").filter(pk=job_id).first()
    record = (
        None
        if job is None
        else VerdictRecord.objects.select_related("lease__worker__owner", "lease__job")
        .filter(job=job, stands=True)
        .order_by("-issued_at")  # one that was stopped and resumed has several; the last is of all of it
        .first()
    )
    if job is None or record is None:
        raise Missing("no job of yours with this id was judged; `labapex ps` and the page Disputes list yours")
    verdict = Verdict.model_validate(record.document)
    host = Lease.objects.select_related("worker__owner").get(pk=verdict.blamed or record.lease_id).worker
    parties = {
        Side.CLIENT: (job.owner_id, JobState.VERIFIED, "only a verified job can be contested by its client"),
        Side.WORKER: (host.owner_id, JobState.REJECTED, "only a rejected run can be contested by its host's owner"),
    }
    sides = [side for side, (owner, _, _) in parties.items() if owner == user.pk]
    if not sides:
        raise Missing("no job of yours with this id was judged; `labapex ps` and the page Disputes list yours")
    side = next((side for side in sides if job.state == parties[side][1].value), sides[0])
    until = (job.ended_at or clock.now()) + timedelta(days=settings.LABAPEX.evidence_days)
    obstacle = None
    if Dispute.objects.filter(~Q(outcome=Outcome.UNJUDGED.value), job=job).exists():
        obstacle = "this job's verdict is contested already, and a job is ruled once"
    elif job.state != parties[side][1].value:
        obstacle = parties[side][2]
    elif job.owner_id == host.owner_id:
        obstacle = "job and worker are of one owner: there is nobody to contest it with"
    elif verdict.verdict == "rejected" and verdict.deciding_rule not in CONTESTABLE:
        obstacle = (
            f"the rule '{verdict.deciding_rule}' decided by the log itself, which training again cannot change; rules that"
            f" can be contested: {', '.join(CONTESTABLE)}"
        )
    elif clock.now() > until:
        obstacle = f"it could be contested until {until:%Y-%m-%d %H:%M} UTC"
    return Terms(job, record, side, price(job), until, obstacle)


def price(job: Job) -> int:
    """Micro-credits that a re-execution of the whole run comes to, at the platform's own speed and reference price."""
    return pricing.estimate(**pricing.work_of(job, settings.LABAPEX.reference_price_per_hour))


@transaction.atomic
def contest(user: User, job_id: UUID, reason: str) -> Dispute:
    """Open a dispute and hold its stake. Raises `Missing`, `Conflict`, `NotEnoughCredit`."""
    found = terms(user, job_id)
    Job.objects.select_for_update().get(pk=found.job.pk)  # two parties' disputes take turns
    found = terms(user, job_id)
    if found.obstacle is not None:
        raise Conflict(found.obstacle)
    account = ledger.account_of(user)
    available = ledger.balance(account).available
    if available < found.stake:
        raise NotEnoughCredit(
            f"the stake is {ledger.credits_text(found.stake)} credits, the price of training the job again, and"
            f" {ledger.credits_text(available)} are available; top up the account"
        )
    memo = f"stake of a dispute over {found.job.name}"
    dispute = Dispute.objects.create(
        job=found.job,
        lease=found.record.lease,
        verdict=found.record,
        opener=user,
        side=found.side.value,
        reason=reason.strip(),
        stake=ledger.hold(account, amount=found.stake, job=found.job.pk, memo=memo),
        segments=len(found.record.lease.terms.leaf_steps()) - 1,
        created_at=clock.now(),
    )
    transaction.on_commit(lambda: opened.send_robust(sender=None, dispute_id=dispute.pk))
    return dispute


# -- reading -----------------------------------------------------------------------------------------------------------


def of(user: User) -> QuerySet[Dispute]:
    """The disputes in which the user is a party."""
    mine = Q(opener=user) | Q(job__owner=user) | Q(lease__worker__owner=user)
    return Dispute.objects.filter(mine).select_related("job", "lease", "verdict", "stake")


def find(user: User, dispute_id: UUID) -> Dispute | None:
    """A dispute in which the user is a party; another's does not exist for them."""
    return of(user).filter(pk=dispute_id).first()


def contestable(user: User) -> list[Terms]:
    """What the user could contest now, the latest first."""
    since = clock.after(-settings.LABAPEX.evidence_days * 24 * 3600)
    ended = Job.objects.filter(ended_at__gte=since, disputes__isnull=True)
    jobs = ended.filter(
        Q(owner=user, state=JobState.VERIFIED.value) | Q(leases__worker__owner=user, state=JobState.REJECTED.value)
    )
    found: list[Terms] = []
    for job in jobs.distinct().order_by("-ended_at")[:50]:
        try:
            offered = terms(user, job.pk)
        except Missing:  # another host of the run was blamed
            continue
        if offered.obstacle is None:
            found.append(offered)
    return found
