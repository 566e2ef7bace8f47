"""A job as its owner sees it: one object for REST, the live page and the command line."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, cast

from django.conf import settings
from django.db.models import QuerySet

from labapex.protocol.api import Erased, JobView, Progress, Stored
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock

# Leases, logs, verdicts and alerts belong to later stages: they are reached from the job's row, never imported.


def viewable(jobs: QuerySet[Job]) -> QuerySet[Job]:
    """Jobs with all that their views need, in a fixed number of queries."""
    return jobs.select_related("hold").prefetch_related(
        "leases__worker", "leases__log", "verdicts", "erasures", "alerts"
    )


def view(job: Job) -> JobView:
    """Costs and payments are micro-credits; times are Unix seconds."""
    spec = job.job_spec
    lease: Any = max(job.leases.all(), key=lambda each: each.granted_at, default=None)
    per_epoch = (job.facts or {}).get("iterations_per_epoch")
    total = per_epoch * spec.epochs if per_epoch else None
    made = iterations(lease)
    money = ledger.outcome(job.hold)
    complete = min(spec.epochs, made // per_epoch) if per_epoch else 0
    state = JobState(job.state)
    verdicts = [record for record in job.verdicts.all() if record.stands]
    verdict = verdicts[-1].document.get("verdict") if verdicts else None
    return JobView(
        id=job.pk,
        name=job.name,
        state=state,
        reason=job.reason,
        fault=Fault(job.fault) if job.fault else None,
        spec=spec,
        created_at=job.created_at.timestamp(),
        started_at=clock.unix(job.started_at),
        ended_at=clock.unix(job.ended_at),
        progress=Progress(
            iterations=made,
            total=total,
            epoch=min(spec.epochs, made // per_epoch + 1) if per_epoch else 0,
            eta_seconds=_eta(lease, state, made, total),
        ),
        iterations_per_epoch=per_epoch,
        packages=tuple(str(wheel) for wheel in job.lock.wheels),
        budget=job.budget,
        cost=money.paid + money.fee if state.ended else _cost(job, lease, per_epoch, complete),
        paid=money.paid,
        fee=money.fee,
        paid_epochs=job.paid_epochs,
        resumable=job.resumable,
        refunded=money.refunded,
        worker=lease.worker.name if lease else None,
        device=(lease.environment or {}).get("device") if lease else None,
        lost_contact=lost_contact(job, lease),
        package_ms=job.package_ms,
        first_loss_seconds=_first_loss(job),
        verdict=cast(Literal["verified", "rejected"] | None, verdict),
        erased=tuple(
            Erased(what=Stored(each.what), at=each.at.timestamp(), reason=each.reason) for each in job.erasures.all()
        ),
        erase_after=clock.unix(job.erase_after),
        url=f"{settings.LABAPEX.public_url.rstrip('/')}/jobs/{job.pk}/",
        alerts=tuple(alert.view for alert in sorted(job.alerts.all(), key=lambda each: each.pk)),
    )


def lost_contact(job: Job, lease: Any) -> bool:
    """Whether the job is with a worker that has missed two heartbeats. Lost contact is not failure."""
    if lease is None or JobState(job.state) not in {JobState.LEASED, JobState.RUNNING, JobState.CHALLENGED}:
        return False
    silence = timedelta(seconds=2.5 * settings.LABAPEX.heartbeat_seconds)
    return bool(clock.now() - lease.heartbeat_at > silence)


def _log(lease: Any) -> Any:
    return getattr(lease, "log", None) if lease is not None else None  # a lease without frames has no log


def iterations(lease: Any) -> int:
    """Of a lease's run, those of earlier hosts that count among them; of one that was stopped, as far as it counts."""
    log = _log(lease)
    made: int = log.next if log is not None else _begun(lease)
    stopped = lease.contract.get("stopped") if lease is not None else None
    return made if stopped is None else min(made, stopped * lease.contract["facts"]["iterations_per_epoch"])


def _begun(lease: Any) -> int:
    """The iteration with which a lease's own part begins."""
    handovers = lease.contract.get("handovers") if lease is not None else None
    return handovers[-1]["leaf"]["step"] if handovers else 0


def _cost(job: Job, lease: Any, per_epoch: int | None, complete: int) -> int:
    """What the epochs cost that are complete, each at the price of the host on which it ended."""
    if not per_epoch or lease is None:
        return 0
    prices = {str(each.pk): each.price_per_epoch + each.fee_per_epoch for each in job.leases.all()}
    live = job.price_per_epoch is not None
    cost = done = 0
    for handover in lease.contract.get("handovers", ()) if live else job.handovers:
        until = handover["leaf"]["step"] // per_epoch
        cost, done = cost + prices[handover["lease"]] * (until - done), until
    return cost + (prices[str(lease.pk)] if live else 0) * max(0, complete - done)


def _eta(lease: Any, state: JobState, iterations: int, total: int | None) -> float | None:
    own = iterations - _begun(lease)
    if state is not JobState.RUNNING or not own or total is None or lease.state != LeaseState.RUNNING:
        return None
    spent: float = (clock.now() - lease.key_released_at).total_seconds()
    return max(0.0, spent / own * (total - iterations))


def _first_loss(job: Job) -> float | None:
    """Seconds from submission to the first stored loss, over all leases."""
    logs = [log for log in map(_log, job.leases.all()) if log is not None and log.next]
    firsts = [log.frames.filter(first=0, n__gt=0).values_list("received_at", flat=True).first() for log in logs]
    times: list[float] = [at for at in firsts if at is not None]
    return float(min(times) - job.created_at.timestamp()) if times else None
