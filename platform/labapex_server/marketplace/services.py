"""Leases: from the promise of a job to a worker to the payment. A lease's state changes by compare-and-swap only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet

from labapex.protocol.frames import KeyRequest
from labapex.protocol.manifest import Manifest, ReleasedKeys
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Verdict
from labapex.sealing import new_key, seal_release, sign
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace import executables
from labapex_server.marketplace.executables import executable_parts
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.marketplace.pricing import price_per_epoch
from labapex_server.workers.models import Worker

__all__ = [
    "alive",
    "authenticate",
    "executable_parts",
    "expire_silent",
    "fail",
    "finish",
    "forgive_silence",
    "give_up",
    "heartbeat",
    "lease",
    "reconcile",
    "release_ended",
    "release_keys",
    "run_key",
    "settle",
]

_CANDIDATES = 20


# -- granting ----------------------------------------------------------------------------------------------------------


def lease(worker: Worker) -> tuple[Lease, str] | None:
    """Promise the job that waits longest to this worker: the lease and its bearer token, which is shown this once.

    None where nothing waits, or where the worker holds a lease that it has not finished.
    """
    if worker.banned or alive(worker).exclude(state=LeaseState.FINISHED.value).exists():
        return None
    for job in Job.objects.filter(state=JobState.QUEUED.value).order_by("created_at")[:_CANDIDATES]:
        granted = _grant(job, worker)
        if granted is not None:
            return granted
    return None


def _grant(job: Job, worker: Worker) -> tuple[Lease, str] | None:
    config, now = settings.LABAPEX, clock.now()
    lease_id, token = uuid.uuid4(), secrets.token_urlsafe(32)
    seed = secrets.token_hex(
        32
    )  # nobody can know it before: it decides initial weights, order and all other randomness
    terms = executables.contract(job, lease=lease_id, seed=seed)
    expires = int(time.time() + config.lease_limit_seconds)
    manifest = executables.manifest(job, terms=terms, worker=worker.pk, expires_at=expires)
    price = price_per_epoch(
        price_per_hour=worker.price_per_hour,
        iteration_seconds=job.iteration_seconds or 0.0,
        iterations_per_epoch=terms.facts.iterations_per_epoch,
        budget=job.budget,
        epochs=terms.epochs,
    )
    with transaction.atomic():
        if not jobs.advance(job, JobState.LEASED, reason=f"given to {worker.name}", price_per_epoch=price):
            return None
        granted = Lease.objects.create(
            id=lease_id,
            job=job,
            worker=worker,
            seed=seed,
            price_per_epoch=price,
            contract=terms.model_dump(mode="json"),
            manifest=manifest.model_dump(mode="json"),
            manifest_signature=sign(keys.manifest_key(), manifest),
            token_digest=_digest(token),
            granted_at=now,
            heartbeat_at=now,
            expires_at=now + timedelta(seconds=config.lease_seconds),
        )
    return granted, token


def authenticate(lease_id: UUID, token: str) -> Lease | None:
    """The live lease that this bearer token belongs to."""
    found = Lease.objects.select_related("job", "worker").filter(pk=lease_id, state__in=LIVE).first()
    # Compared also where there is no such lease: the time taken does not tell.
    matches = hmac.compare_digest(found.token_digest if found else "0" * 64, _digest(token))
    return found if found is not None and matches and not found.worker.banned else None


# -- keys --------------------------------------------------------------------------------------------------------------


@transaction.atomic
def release_keys(lease: Lease, *, request: KeyRequest) -> bytes:
    """Content key and run key, sealed to the executable's key: what `KeyRelease` carries.

    Given out once. The same executable that asks again gets the same sealed bytes, so that a lost reply costs nothing.
    Raises `Conflict` for another executable or a lease that is over.
    """
    current = Lease.objects.select_for_update().select_related("job", "worker").get(pk=lease.pk)
    if current.state not in (LeaseState.GRANTED.value, LeaseState.RUNNING.value):
        raise Conflict("this lease is over; delete its files")
    if current.sealed_keys is not None:
        same = hmac.compare_digest(bytes(current.hpke_key or b""), request.hpke_key)
        if same and hmac.compare_digest(bytes(current.signing_key or b""), request.signing_key):
            return bytes(current.sealed_keys)
        raise Conflict("the keys of this lease were given to another process already; ask for a new lease")
    job, now = current.job, clock.now()
    run = new_key()
    released = ReleasedKeys(content_key=jobs.content_key(job), run_key=run)
    sealed = seal_release(request.hpke_key, manifest=Manifest.model_validate(current.manifest), keys=released)
    environment = request.environment.model_dump(mode="json")
    _change(
        current,
        LeaseState.GRANTED,
        LeaseState.RUNNING,
        key_released_at=now,
        heartbeat_at=now,
        expires_at=now + timedelta(seconds=settings.LABAPEX.lease_seconds),
        hpke_key=request.hpke_key,
        signing_key=request.signing_key,
        sealed_keys=sealed,
        wrapped_run_key=keys.wrap(run, _run_purpose(current.pk)),
        environment=environment,
    )
    Worker.objects.filter(pk=current.worker_id).update(environment=environment)
    if not jobs.advance(job, JobState.RUNNING, reason="training", started_at=job.started_at or now):
        raise Conflict("the job was stopped; delete its files")
    return sealed


def run_key(lease: Lease) -> bytes:
    """The key of the lease's log. Raises `Conflict` where none was given out."""
    if lease.wrapped_run_key is None:
        raise Conflict("the keys of this lease were not given out yet")
    return keys.unwrap(lease.wrapped_run_key, _run_purpose(lease.pk))


# -- living ------------------------------------------------------------------------------------------------------------


def alive(worker: Worker) -> QuerySet[Lease]:
    """The worker's leases that are not over."""
    return Lease.objects.filter(worker=worker, state__in=LIVE)


def heartbeat(worker: Worker, lease_ids: Iterable[UUID]) -> None:
    """The worker showed that these of its leases live."""
    now = clock.now()
    alive(worker).filter(pk__in=list(lease_ids)).update(
        heartbeat_at=now, expires_at=now + timedelta(seconds=settings.LABAPEX.lease_seconds)
    )


def reconcile(worker: Worker, in_hand: Iterable[UUID]) -> None:
    """A worker connected and named what it has in hand: a grant that it never received goes back to the queue."""
    for lost in alive(worker).filter(state=LeaseState.GRANTED.value).exclude(pk__in=list(in_hand)):
        fail(lost, "the grant never reached the worker")


# -- ending ------------------------------------------------------------------------------------------------------------


@transaction.atomic
def finish(lease: Lease) -> bool:
    """The log is complete and every commitment fixed. True if that is the case now, also when it was before."""
    changed = _try_change(lease, LeaseState.RUNNING, LeaseState.FINISHED, finished_at=clock.now())
    if not changed:
        return lease.state == LeaseState.FINISHED.value
    job = Job.objects.get(pk=lease.job_id)
    if not jobs.advance(job, JobState.CHALLENGED, reason="training is complete; the worker opens what is asked for"):
        raise Conflict("the job was stopped; delete its files")
    return True


@transaction.atomic
def fail(lease: Lease, reason: str, *, script: str | None = None) -> None:
    """The worker could not go on. That is its own matter, and the job waits for another one.

    Unless its log says that the script ended with an error, which `script` tells: then the job has failed.
    """
    before = LeaseState(lease.state)
    if before not in (LeaseState.GRANTED, LeaseState.RUNNING):
        return
    if not _try_change(lease, before, LeaseState.FAILED, ended_at=clock.now(), reason=reason):
        return
    if script is None:
        what = "could not start it" if before is LeaseState.GRANTED else "could not finish it"
        _requeue(lease, f"{lease.worker.name} {what}: {reason}")
    else:
        job = Job.objects.get(pk=lease.job_id)
        if not JobState(job.state).ended:
            jobs.advance(job, JobState.FAILED, reason=script, fault=Fault.CLIENT)


def expire_silent(now: datetime) -> int:
    """Give up leases whose worker fell silent or never started; their jobs wait again. Returns how many."""
    started_by = now - timedelta(seconds=settings.LABAPEX.start_seconds)
    silent = Q(state__in=(LeaseState.GRANTED.value, LeaseState.RUNNING.value), expires_at__lt=now)
    idle = Q(state=LeaseState.GRANTED.value, granted_at__lt=started_by)
    given_up = 0
    for lost in Lease.objects.select_related("job", "worker").filter(silent | idle):
        with transaction.atomic():
            before = LeaseState(lost.state)
            current = Lease.objects.filter(pk=lost.pk, expires_at=lost.expires_at)  # it may have spoken meanwhile
            if _try_change(
                lost, before, LeaseState.EXPIRED, among=current, ended_at=now, reason="the worker fell silent"
            ):
                given_up += 1
                _requeue(lost, f"{lost.worker.name} fell silent")
    return given_up


def give_up(lease: Lease, reason: str) -> bool:
    """End a lease whose worker is there and does not get on; its job waits again. False: it had ended before."""
    with transaction.atomic():
        if not _try_change(lease, LeaseState.RUNNING, LeaseState.EXPIRED, ended_at=clock.now(), reason=reason):
            return False
        _requeue(lease, f"{lease.worker.name}: {reason}")
        return True


def forgive_silence() -> int:
    """The platform itself was away and could hear nobody: workers have the usual time from now on. Returns how many had less."""
    until = clock.after(settings.LABAPEX.lease_seconds)
    waiting = Lease.objects.filter(state__in=(LeaseState.GRANTED.value, LeaseState.RUNNING.value))
    return waiting.filter(expires_at__lt=until).update(expires_at=until)


def release_ended() -> int:
    """End live leases of jobs that have ended, for example by their owner. Returns how many."""
    ended = [state.value for state in JobState if state.ended]
    released = 0
    for left in Lease.objects.select_related("job").filter(state__in=LIVE, job__state__in=ended):
        reason = left.job.reason or f"the job is {left.job.state}"
        released += _try_change(left, LeaseState(left.state), LeaseState.FAILED, ended_at=clock.now(), reason=reason)
    return released


@transaction.atomic
def settle(lease: Lease, verdict: Verdict) -> bool:
    """Move the money as the verdict says and end job and lease, all or nothing. False: it was done before."""
    job = Job.objects.select_related("hold").get(pk=lease.job_id)
    if job.state != JobState.SETTLING.value:
        return False
    verified = verdict.verdict == "verified"
    paid_epochs = verdict.verified_epochs if verified else 0  # a proven cheat forfeits the whole job
    if job.hold is not None:
        due = lease.price_per_epoch * paid_epochs
        payee = ledger.account_of(lease.worker.owner)
        memo = f"{paid_epochs} verified epochs at {ledger.credits_text(lease.price_per_epoch)}"
        ledger.settle(job.hold, payments=[(payee, due, memo)] if due else [])
    _try_change(lease, LeaseState.FINISHED, LeaseState.SETTLED, ended_at=clock.now(), reason=verdict.verdict)
    to = JobState.VERIFIED if verified else JobState.REJECTED
    if not jobs.advance(job, to, reason=verdict.reason, fault=verdict.fault):
        raise Conflict("the job was settled by someone else")
    return True


# -- within ------------------------------------------------------------------------------------------------------------


def _requeue(lost: Lease, reason: str) -> None:
    """Let the job wait for another worker, unless too many leases of it were lost."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state not in (JobState.LEASED.value, JobState.RUNNING.value):
        return
    if job.attempts + 1 >= settings.LABAPEX.max_attempts:
        reason = f"given up after {job.attempts + 1} leases; the last: {reason}"
        jobs.advance(job, JobState.FAILED, reason=reason, fault=Fault.WORKER, attempts=F("attempts") + 1)
    else:
        jobs.advance(job, JobState.QUEUED, reason=reason, attempts=F("attempts") + 1, price_per_epoch=None)


def _change(lease: Lease, before: LeaseState, after: LeaseState, **fields: Any) -> None:
    if not _try_change(lease, before, after, **fields):
        raise Conflict(f"the lease is {lease.state}")


def _try_change(
    lease: Lease, before: LeaseState, after: LeaseState, *, among: QuerySet[Lease] | None = None, **fields: Any
) -> bool:
    rows = Lease.objects.filter(pk=lease.pk) if among is None else among
    changed = rows.filter(state=before.value).update(state=after.value, **fields)
    lease.refresh_from_db()
    return bool(changed)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _run_purpose(lease_id: UUID) -> str:
    return f"run:{lease_id}"
