"""What pages show besides the live feed: a job's way through its stations, its clock, its verdict, a host's earnings.

Only reading, and no rule: everything here was decided by the services that wrote it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db.models import F, Q, Sum

from labapex.protocol.records import uncolumn
from labapex.protocol.states import JobState, LeaseState
from labapex.protocol.verdict import SignedVerdict, Verdict
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import iterations, lost_contact
from labapex_server.ledger import services as ledger
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Leaf, Log
from labapex_server.telemetry.stints import parts
from labapex_server.verification.earnings import paid_to
from labapex_server.verification.models import Challenge, VerdictRecord
from labapex_server.web.templatetags.labapex import credits, number, short, size
from labapex_server.workers import reputation

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
        per_epoch = (job.facts or {}).get("iterations_per_epoch")
        listed.append(
            Row(
                job=job,
                iterations=iterations(lease),
                total=per_epoch * job.spec["epochs"] if per_epoch else None,
                lost_contact=lost_contact(job, lease),
            )
        )
    return listed


def current_lease(job: Job) -> Lease | None:
    """The job's latest lease."""
    return Lease.objects.filter(job=job).select_related("worker").order_by("-granted_at").first()


def clock(job: Job, *, after: int) -> list[tuple[int, float]]:
    """When iterations past `after` of the current run were done, as (iteration, Unix time), both ascending.

    One row for each frame, thinned out to a few thousand: enough to tie two x axes together."""
    lease = current_lease(job)
    if lease is None:
        return []
    run = parts(lease)
    held = Log.objects.filter(pk__in=[part.lease for part in run]).aggregate(frames=Sum("seq"))["frames"] or 0
    stride = max(1, held // KNOTS)
    knots: list[tuple[int, float]] = []
    for part in run:
        frames = part.frames().filter(n__gt=0, first__gt=after).annotate(place=F("seq") % stride).filter(place=0)
        for first, times in frames.values_list("first", "times"):
            at = uncolumn(bytes(times)[:8])[0]
            if math.isfinite(at) and (not knots or at >= knots[-1][1]):
                knots.append((first, at))
    return knots


def signed_verdict(job: Job) -> SignedVerdict | None:
    record = VerdictRecord.objects.filter(job=job, stands=True).order_by("-issued_at").first()
    if record is None:
        return None
    return SignedVerdict.model_validate(
        {"verdict": record.document, "key_id": record.key_id, "signature": bytes(record.signature)}
    )


def shares(verdict: Verdict) -> list[marketplace.Share]:
    """What each host of a verified run is paid; empty where one host made it, or nothing is paid."""
    lease = Lease.objects.get(pk=verdict.lease)
    return marketplace.shares(lease) if verdict.verdict == "verified" and lease.contract.get("handovers") else []


def earnings(workers: Sequence[UUID], owner: User) -> dict[UUID, int]:
    """Micro-credits paid to the owner for the work of each worker."""
    earned: dict[UUID, int] = {}
    judged = (
        VerdictRecord.objects.select_related("lease").filter(stands=True, job__leases__worker__in=workers).distinct()
    )
    for (_, worker), amount in paid_to(judged, owner).items():
        if worker in workers:
            earned[worker] = earned.get(worker, 0) + amount
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
    JobState.RESUMING,
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
    gone = (LeaseState.EXPIRED.value, LeaseState.FAILED.value, LeaseState.REJECTED.value)
    further = {
        handover["lease"]: handover["leaf"]["step"]
        for handover in (*job.handovers, *(lease.contract.get("handovers", ()) if lease else ()))
    }
    over = state in (JobState.QUEUED, JobState.RESUMING, JobState.FAILED)
    steps += [
        _lost(lost, further.get(str(lost.pk)))
        for lost in Lease.objects.select_related("worker")
        .filter(Q(state__in=gone) | Q(pk__in=further), job=job)
        .order_by("granted_at")
        if over or lost.pk != (lease.pk if lease else None)
    ]
    live = lease if state not in (JobState.QUEUED, JobState.RESUMING) else None
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


def _lost(lost: Lease, further: int | None) -> Step:
    """A lease that was lost; another one goes on with its run from iteration `further`."""
    if lost.state == LeaseState.REJECTED.value:
        return Step("What a worker had done is false", "failed", lost.reason, lost.ended_at)
    words = f"{lost.worker.name}: {lost.reason or 'it fell silent'}. "
    if further is None:
        return Step("A lease was lost", "failed", f"{words}The job goes to another by itself.", lost.ended_at)
    words += f"What it had done was replayed and holds; another worker goes on from iteration {number(further)}."
    return Step("Handed over", "done", words, lost.ended_at)


def _reached(job: Job) -> int:
    """How far an ended job had come: the station in `_ORDER` that it was in at last, whatever a ruling made of its end."""
    state = JobState(job.state)
    if not state.ended:
        return _ORDER.index(state)
    before = job.transitions.filter(before__in=_ORDER).order_by("pk").values_list("before", flat=True).last()
    reached = _ORDER.index(JobState(before)) if before else 0
    return reached + 1 if state in (JobState.VERIFIED, JobState.REJECTED) else reached


def _preflight(job: Job) -> str:
    if job.facts is None:
        return "Runs the script twice over a few iterations, before any money is held."
    facts, wheels = job.facts, job.lock.wheels
    words = (
        f"{number(facts['iterations_per_epoch'])} iterations an epoch ({facts['loop']}),"
        f" {number(facts['parameters'])} parameters, a state of {size(facts['state_bytes'])}."
    )
    if wheels:
        words += f" With {', '.join(map(str, wheels[:8]))}{' and more' if len(wheels) > 8 else ''}."
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
        f"{lease.worker.name}, {credits(lease.price_per_epoch)} credits an epoch. Its reputation:"
        f" {reputation.of(lease.worker)}. The seed was drawn with the lease."
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
    last = Leaf.objects.filter(log__lease=lease, index__lt=due).order_by("-index").first()
    committed = (lease.terms.after.index + 1 if lease.terms.after else 0) if last is None else last.index + 1
    words = f"{number(committed)} of {number(due)} states committed"
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
    if challenge.round == 0:
        words = (
            f"Chunk {challenge.chunk} of the parameters, of {number(len(challenge.wanted))} states, ranks the updates."
        )
        return [Step("Challenge", status, words, challenge.issued_at), Step("Opened states", "waiting")]
    asked = challenge.all_indices
    came = list(lease.opened.filter(index__in=asked).order_by("received_at"))
    here = len(lease.terms.held.intersection(asked))  # from earlier hosts
    drawn, segments = len(asked), len(challenge.all_segments)
    first = Step(
        "Challenge",
        "done",
        f"{number(segments)} segment{'s' if segments != 1 else ''} to train again; {number(drawn)} states to be opened:"
        f" {_some(asked)}." + (f" {number(len(challenge.further))} of them in doubt." if challenge.further else ""),
        challenge.issued_at,
    )
    words = f"{number(len(came) + here)} of {number(drawn)} arrived, {size(sum(opened.size for opened in came))}."
    done = "done" if len(came) + here >= drawn else status
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
        f"{credits(money.paid)} credits paid,{f' {credits(money.fee)} to the platform,' if money.fee else ''}"
        f" {credits(money.refunded)} given back."
        if money.held
        else "No money was held."
    )
    return Step("Settlement", "done", words, job.ended_at)
