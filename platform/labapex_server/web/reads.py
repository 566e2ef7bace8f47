"""What pages show besides the live feed: a job's way through its stations, its clock, its verdict, a host's earnings.

Only reading, and no rule: everything here was decided by the services that wrote it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import F, Sum

from labapex.protocol.records import uncolumn
from labapex.protocol.states import JobState, LeaseState
from labapex.protocol.verdict import SignedVerdict
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import lost_contact
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import POSTED, Transfer
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.verification.models import Challenge, VerdictRecord
from labapex_server.web.templatetags.labapex import credits, number, short, size

KNOTS = 4000


@dataclass(frozen=True)
class Row:
    """A job in the list. `total` is unknown before the preflight."""

    job: Job
    iterations: int
    total: int | None
    lost_contact: bool


def rows(jobs: Sequence[Job]) -> list[Row]:
    """The jobs' progress; `jobs` come with their leases and logs (`jobs.view.viewable`): nothing more is asked."""
    listed = []
    for job in jobs:
        lease: Any = max(job.leases.all(), key=lambda each: each.granted_at, default=None)
        log = getattr(lease, "log", None) if lease is not None else None
        per_epoch = (job.facts or {}).get("iterations_per_epoch")
        listed.append(
            Row(
                job=job,
                iterations=log.next if log is not None else 0,
                total=per_epoch * job.spec["epochs"] if per_epoch else None,
                lost_contact=lost_contact(job, lease),
            )
        )
    return listed


def current_lease(job: Job) -> Lease | None:
    """The job's latest lease."""
    return Lease.objects.filter(job=job).select_related("worker").order_by("-granted_at").first()


def clock(job: Job, *, after: int) -> list[tuple[int, float]]:
    """When iterations past `after` of the current lease were done, as (iteration, Unix time), both ascending.

    One row for each frame, thinned out to a few thousand: enough to tie two x axes together."""
    log = Log.objects.filter(lease=current_lease(job)).first()
    if log is None:
        return []
    stride = max(1, log.seq // KNOTS)
    frames = (
        Frame.objects.filter(log=log, n__gt=0, first__gt=after)
        .annotate(place=F("seq") % stride)
        .filter(place=0)
        .order_by("seq")
    )
    knots: list[tuple[int, float]] = []
    for first, times in frames.values_list("first", "times"):
        at = uncolumn(bytes(times)[:8])[0]
        if math.isfinite(at) and (not knots or at >= knots[-1][1]):
            knots.append((first, at))
    return knots


def signed_verdict(job: Job) -> SignedVerdict | None:
    record = VerdictRecord.objects.filter(job=job).order_by("-issued_at").first()
    if record is None:
        return None
    return SignedVerdict.model_validate(
        {"verdict": record.document, "key_id": record.key_id, "signature": bytes(record.signature)}
    )


def earnings(workers: Sequence[UUID], owner: User) -> dict[UUID, int]:
    """Micro-credits paid to the owner for the work of each worker."""
    by_job = dict(VerdictRecord.objects.filter(lease__worker__in=workers).values_list("job_id", "lease__worker_id"))
    paid = (
        Transfer.objects.filter(credit__user=owner, status=POSTED, hold__isnull=False, job__in=list(by_job))
        .exclude(hold__debit=F("credit"), memo=ledger.REST)
        .values("job")
        .annotate(total=Sum("amount"))
    )
    earned: dict[UUID, int] = {}
    for row in paid:
        worker = by_job[row["job"]]  # type: ignore[index]  # transfers outside of jobs were left out above
        earned[worker] = earned.get(worker, 0) + row["total"]
    return earned


# -- the way of a job, station by station ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    title: str
    status: str  # done, now, waiting, failed
    words: str = ""
    at: Any = None  # datetime or Unix time


_ORDER = [
    JobState.SUBMITTED,
    JobState.PACKAGING,
    JobState.QUEUED,
    JobState.LEASED,
    JobState.RUNNING,
    JobState.CHALLENGED,
    JobState.VERIFYING,
    JobState.SETTLING,
]


def timeline(job: Job) -> list[Step]:
    """The stations of a job from preflight to settlement, each with what is known of it so far."""
    state, reached = JobState(job.state), _reached(job)

    def status(*stations: JobState) -> str:
        if state in stations:
            return "now"
        last = max(_ORDER.index(station) for station in stations)
        if reached > last or state is JobState.VERIFIED:
            return "done"
        return "failed" if state.ended and reached in [_ORDER.index(station) for station in stations] else "waiting"

    lease = current_lease(job)
    steps = [
        Step("Preflight", status(JobState.SUBMITTED), _preflight(job), job.created_at),
        Step("Sealed executable", status(JobState.PACKAGING), _packaged(job)),
    ]
    for lost in Lease.objects.filter(job=job, state__in=(LeaseState.EXPIRED.value, LeaseState.FAILED.value)).order_by(
        "granted_at"
    ):
        if lost.pk != (lease.pk if lease else None) or state in (JobState.QUEUED, JobState.FAILED):
            words = f"{lost.worker.name}: {lost.reason or 'it fell silent'}. The job goes to another by itself."
            steps.append(Step("A lease was lost", "failed", words, lost.ended_at))
    live = lease if state is not JobState.QUEUED else None
    steps.append(
        Step(
            "Lease",
            status(JobState.QUEUED, JobState.LEASED),
            _leased(live, state),
            live.granted_at if live else None,
        )
    )
    steps.append(_committed(live, status(JobState.RUNNING)))
    steps += _opened(live, status(JobState.CHALLENGED))
    steps.append(_judged(job, status(JobState.VERIFYING)))
    steps.append(_settled(job, status(JobState.SETTLING)))
    return steps


def _reached(job: Job) -> int:
    """How far an ended job had come: the station in `_ORDER` that it was in at last."""
    state = JobState(job.state)
    if not state.ended:
        return _ORDER.index(state)
    before = job.transitions.filter(after=job.state).values_list("before", flat=True).last()
    reached = _ORDER.index(JobState(before)) if before else 0
    return reached + 1 if state in (JobState.VERIFIED, JobState.REJECTED) else reached


def _preflight(job: Job) -> str:
    if job.facts is None:
        return "Runs the script twice over a few iterations, before any money is held."
    facts = job.facts
    words = (
        f"{number(facts['iterations_per_epoch'])} iterations an epoch ({facts['loop']}),"
        f" {number(facts['parameters'])} parameters, a state of {size(facts['state_bytes'])}."
    )
    error = (job.preflight or {}).get("replay_max_error")
    return words if error is None else f"{words} It reproduces itself with an error of {error:g}."


def _packaged(job: Job) -> str:
    if job.package_ms is None:
        return "Code and data are encrypted and the executable signed."
    files = len(job.bundle["code"]) + len(job.bundle["data"])
    return f"{number(files)} file{'s' if files != 1 else ''} sealed in {job.package_ms:.0f} ms."


def _leased(lease: Lease | None, state: JobState) -> str:
    if lease is None:
        return "" if state.ended else "Waits for a worker that is free."
    words = (
        f"{lease.worker.name}, {credits(lease.price_per_epoch)} credits an epoch. The seed was drawn with the lease."
    )
    return words if lease.key_released_at is None else f"{words} Keys released to its executable, once."


def _committed(lease: Lease | None, status: str) -> Step:
    title = "Commitments while training"
    if lease is None:
        return Step(
            title,
            status,
            "Each few iterations the digest of the whole state is fixed, before anyone knows what is drawn.",
        )
    due = len(lease.terms.leaf_steps())
    leaves = Leaf.objects.filter(log__lease=lease)
    last = leaves.order_by("-index").first()
    words = f"{number(leaves.count())} of {number(due)} states committed"
    if last is not None:
        words += f"; the last after {number(last.step)} iterations is {short(last.state)}"
    return Step(title, status, words, last.received_at if last else None)


def _opened(lease: Lease | None, status: str) -> list[Step]:
    challenge = Challenge.objects.filter(lease=lease).first() if lease is not None else None
    if lease is None or challenge is None:
        return [
            Step("Challenge", "waiting" if status == "done" else status, "Drawn at random, after the last commitment."),
            Step("Opened states", "waiting"),
        ]
    drawn, came = len(challenge.indices), list(lease.opened.order_by("received_at"))
    segments = len(challenge.segments)
    first = Step(
        "Challenge",
        "done",
        f"{number(segments)} segment{'s' if segments != 1 else ''} to train again; {number(drawn)} states to be opened:"
        f" {_some(challenge.indices)}.",
        challenge.issued_at,
    )
    words = f"{number(len(came))} of {number(drawn)} arrived, {size(sum(opened.size for opened in came))}."
    done = "done" if len(came) >= drawn else status
    return [first, Step("Opened states", done, words, came[-1].received_at if came else None)]


def _some(indices: Sequence[int]) -> str:
    shown = ", ".join(str(index) for index in indices[:8])
    return f"{shown} and {len(indices) - 8} more" if len(indices) > 8 else shown


def _judged(job: Job, status: str) -> Step:
    signed = signed_verdict(job)
    if signed is None:
        return Step("Verdict", status, "Each rule with its value and limit, signed by the platform.")
    verdict = signed.verdict
    cost = verdict.cost
    words = (
        f"{verdict.reason} {number(cost.segments_replayed)} segments trained again in {cost.verify_seconds:.1f} s;"
        f" {size(cost.opened_bytes)} opened of {size(cost.all_checkpoint_bytes)}."
    )
    return Step(
        f"Verdict: {verdict.verdict}", "done" if verdict.verdict == "verified" else "failed", words, verdict.issued_at
    )


def _settled(job: Job, status: str) -> Step:
    money = ledger.outcome(job.hold)
    if not JobState(job.state).ended:
        return Step("Settlement", status, f"{credits(money.held)} credits are held." if money.open else "")
    words = (
        f"{credits(money.paid)} credits paid, {credits(money.refunded)} given back."
        if money.held
        else "No money was held."
    )
    return Step("Settlement", "done", words, job.ended_at)
