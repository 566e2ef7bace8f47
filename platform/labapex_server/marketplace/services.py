"""Leases: from the promise of a job to a worker to the payment. A lease's state changes by compare-and-swap only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet

from labapex.proof.tolerance import described
from labapex.protocol.contract import Contract, Environment, Handover, Stint
from labapex.protocol.frames import KeyRequest
from labapex.protocol.manifest import Manifest, ReleasedKeys
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Verdict
from labapex.sealing import new_key, seal_release, sign
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Account
from labapex_server.lib import builds, clock, keys, tolerances, trust
from labapex_server.lib.errors import Conflict, OtherClass, UnknownBuild
from labapex_server.marketplace import executables
from labapex_server.marketplace.executables import executable_parts
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.marketplace.pricing import Work, estimate, price_per_epoch
from labapex_server.workers.models import Worker

__all__ = [
    "Share",
    "alive",
    "authenticate",
    "begin_anew",
    "executable_parts",
    "expire_silent",
    "fail",
    "finish",
    "forgive_silence",
    "give_up",
    "hand_over",
    "heartbeat",
    "lease",
    "lost_lease",
    "reconcile",
    "release_ended",
    "release_keys",
    "run_key",
    "settle",
    "shares",
]

_CANDIDATES = 20


# -- granting ----------------------------------------------------------------------------------------------------------


def lease(worker: Worker) -> tuple[Lease, str] | None:
    """Promise the job that waits longest to this worker: the lease and its bearer token, which is shown this once.

    None where nothing waits, or where the worker holds a lease that it has not finished. Jobs on which a worker of its class
    could not be judged are passed over, once an executable has told its class, and so are jobs whose budget does not cover
    the worker's price, and jobs that ask for more speed than it has shown; those whose run another class began, for
    `handover_wait_seconds`; and for good those in which something false was found of this worker. A worker whose torch is a
    stranger's gets none, until it connects anew.
    """
    if worker.banned or alive(worker).exclude(state=LeaseState.FINISHED.value).exists():
        return None
    told = Worker.objects.only("environment", "torch_build", "speed").filter(pk=worker.pk).first()
    environment = Environment.model_validate(told.environment) if told and told.environment else None
    if told and environment is not None and builds.stranger(environment.torch, told.torch_build or None) is not None:
        return None
    false = Lease.objects.filter(worker=worker, state=LeaseState.REJECTED.value).values("job_id")
    waiting = Job.objects.filter(state=JobState.QUEUED.value).exclude(pk__in=false)
    waiting = waiting.exclude(spec__min_speed__gt=(told and told.speed) or 0.0)
    for job in waiting.order_by("created_at")[:_CANDIDATES]:
        granted = _grant(job, worker, environment)
        if granted is not None:
            return granted
    return None


def _grant(job: Job, worker: Worker, environment: Environment | None) -> tuple[Lease, str] | None:
    config, now = settings.LABAPEX, clock.now()
    lease_id, token = uuid.uuid4(), secrets.token_urlsafe(32)
    before = _predecessor(job, environment)
    if before is not None:
        terms = executables.continued(before, _handovers(job), lease=lease_id)
    else:  # nobody can know a seed before: it decides initial weights, order and all other randomness
        terms = executables.contract(job, lease=lease_id, seed=secrets.token_hex(32))
    if environment is not None:
        there = environment.model_copy(update={"threads": terms.threads})
        if tolerances.gap(there, _own_class(job, terms), terms) is not None or _of_another_class(before, there):
            return None
    expires = int(time.time() + config.lease_limit_seconds)
    manifest = executables.manifest(job, terms=terms, worker=worker.pk, expires_at=expires, before=before)
    work: Work = {
        "price_per_hour": worker.price_per_hour,
        "iteration_seconds": job.iteration_seconds or 0.0,
        "iterations_per_epoch": terms.facts.iterations_per_epoch,
        "epochs": terms.epochs,
    }
    if estimate(**work) > job.budget:
        return None
    price = price_per_epoch(**work, budget=job.budget)
    with transaction.atomic():
        reason = f"given to {worker.name}"
        if terms.after is not None:
            reason += f", to go on from iteration {terms.after.step}"
        handovers = job.handovers if before is not None else []
        if not jobs.advance(job, JobState.LEASED, reason=reason, price_per_epoch=price, handovers=handovers):
            return None
        granted = Lease.objects.create(
            id=lease_id,
            job=job,
            worker=worker,
            seed=terms.seed,
            price_per_epoch=price,
            contract=terms.model_dump(mode="json"),
            manifest=manifest.model_dump(mode="json"),
            manifest_signature=sign(trust.private("manifest", manifest.key), manifest),
            token_digest=_digest(token),
            granted_at=now,
            heartbeat_at=now,
            expires_at=now + timedelta(seconds=config.lease_seconds),
        )
    return granted, token


def _handovers(job: Job) -> tuple[Handover, ...]:
    return tuple(Handover.model_validate(each) for each in job.handovers)


def _predecessor(job: Job, environment: Environment | None) -> Lease | None:
    """The lost lease with whose run the next one goes on. None where it begins anew: because nothing is there to go on from,
    or because no host of that class came for so long that one of another class may."""
    if not job.handovers:
        return None
    before = Lease.objects.get(pk=job.handovers[-1]["lease"])
    waited = before.ended_at is not None and before.ended_at < clock.after(-settings.LABAPEX.handover_wait_seconds)
    return None if waited and environment is not None and _of_another_class(before, environment) else before


def _of_another_class(before: Lease | None, environment: Environment) -> bool:
    """Whether a host could not go on with the run of `before` so that bits stay the same."""
    if before is None or before.environment is None:
        return False
    there = environment.model_copy(update={"threads": before.terms.threads})
    return there != Environment.model_validate(before.environment)


def authenticate(lease_id: UUID, token: str) -> Lease | None:
    """The live lease that this bearer token belongs to."""
    found = Lease.objects.select_related("job", "worker").filter(pk=lease_id, state__in=LIVE).first()
    # Compared also where there is no such lease: the time taken does not tell.
    matches = hmac.compare_digest(found.token_digest if found else "0" * 64, _digest(token))
    return found if found is not None and matches and not found.worker.banned else None


# -- keys --------------------------------------------------------------------------------------------------------------


def release_keys(lease: Lease, *, request: KeyRequest) -> bytes:
    """Content key and run key, sealed to the executable's key: what `KeyRelease` carries.

    Given out once. The same executable that asks again gets the same sealed bytes, so that a lost reply costs nothing.
    Raises `Conflict` for another executable or a lease that is over, `OtherClass` where the executable runs on a class of
    hosts whose work could not be judged here, and `UnknownBuild` where its torch is none of those on record: then the lease
    is over, and the job waits for another worker.
    """
    terms = lease.terms
    own = _own_class(lease.job, terms)
    why = tolerances.gap(request.environment, own, terms)
    before = Lease.objects.get(pk=terms.handovers[-1].lease) if terms.handovers else None
    waits = "a worker of the class that began this run"
    if why is None and _of_another_class(before, request.environment) and _decline(lease, request, waits):
        raise OtherClass(
            "this job goes on with the run of another class of hosts, bit for bit; it waits for such a one"
        )
    waits = f"a worker of a class that this platform can judge; {lease.worker.name} is of another"
    if why is not None and _decline(lease, request, f"{waits}: {described(request.environment)}"):
        raise OtherClass(
            f"this platform could not judge what is trained on {described(request.environment)}: it is of another class,"
            f" {described(own)}, and {why}; the job goes to another worker"
        )
    stranger = builds.stranger(request.environment.torch, request.torch_build)
    waits = f"a worker with a build of torch that is on record; {lease.worker.name} has another"
    if stranger is not None and _decline(lease, request, f"{waits}: {stranger}"):
        raise UnknownBuild(f"{stranger}; install torch anew from its usual source, and restart the daemon")
    return _release(lease, request)


def _own_class(job: Job, terms: Contract) -> Environment | None:
    """The class of hosts on which the job's preflight ran, and its replay will."""
    found = (job.preflight or {}).get("environment")
    return Environment.model_validate({**found, "threads": terms.threads}) if found else None


@transaction.atomic
def _decline(lease: Lease, request: KeyRequest, waits: str) -> bool:
    """End a lease before anything was trained; its job waits for what `waits` says. It does not count among the lost ones.

    False: the lease was past that."""
    if not _try_change(
        lease, LeaseState.GRANTED, LeaseState.FAILED, ended_at=clock.now(), reason=f"no keys: the job waits for {waits}"
    ):
        return False
    _remember(lease, request)
    job = Job.objects.get(pk=lease.job_id)
    if job.state == JobState.LEASED.value:
        jobs.advance(job, JobState.QUEUED, reason=f"waits for {waits}", price_per_epoch=None)
    return True


def _remember(lease: Lease, request: KeyRequest) -> None:
    """What an executable told of its worker's host."""
    Worker.objects.filter(pk=lease.worker_id).update(
        environment=request.environment.model_dump(mode="json"), torch_build=request.torch_build or ""
    )


@transaction.atomic
def _release(lease: Lease, request: KeyRequest) -> bytes:
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
    _remember(current, request)
    reason = f"training, on {builds.described(request.environment.torch, request.torch_build)}"
    if not jobs.advance(job, JobState.RUNNING, reason=reason, started_at=job.started_at or now):
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
    if job.hold is not None:  # a proven cheat forfeits the whole job, whoever's it was
        ledger.settle(job.hold, payments=[part.payment for part in shares(lease)] if verified else [])
    ending: str = verdict.verdict
    if verdict.blamed not in (None, lease.pk):
        ending = "what an earlier host of the run had done is false"
        Lease.objects.filter(pk=verdict.blamed).update(state=LeaseState.REJECTED.value, reason=verdict.reason)
    _try_change(lease, LeaseState.FINISHED, LeaseState.SETTLED, ended_at=clock.now(), reason=ending)
    if verified:  # it stood as lost until now
        earlier = [each["lease"] for each in lease.contract.get("handovers", ())]
        Lease.objects.filter(pk__in=earlier).update(state=LeaseState.SETTLED.value)
    to = JobState.VERIFIED if verified else JobState.REJECTED
    if not jobs.advance(job, to, reason=verdict.reason, fault=verdict.fault):
        raise Conflict("the job was settled by someone else")
    return True


# -- going on elsewhere ------------------------------------------------------------------------------------------------


def lost_lease(job: Job) -> Lease:
    """The lease whose loss made a job `resuming`."""
    return Lease.objects.select_related("job", "worker").filter(job=job).latest("granted_at")


@transaction.atomic
def hand_over(lost: Lease, handover: Handover, reason: str) -> bool:
    """What a lost lease has done holds: the next one goes on behind it. False: the job is no longer `resuming`.

    A lease that brought its job further is none of those after which a job is given up."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state != JobState.RESUMING.value:
        return False
    handovers = [*lost.terms.handovers, handover]
    return jobs.advance(
        job, JobState.QUEUED, reason=reason, handovers=[each.model_dump(mode="json") for each in handovers]
    )


@transaction.atomic
def begin_anew(lost: Lease, reason: str, *, false: bool) -> bool:
    """Nothing of a lost lease can be used; `false`: because what it had done is not what it committed to. The next one goes on
    from where that lease did, or begins anew. False: the job is no longer `resuming`."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state != JobState.RESUMING.value or not _wait_again(job, reason):
        return False
    if false:
        Lease.objects.filter(pk=lost.pk).update(state=LeaseState.REJECTED.value, reason=reason)
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


# -- within ------------------------------------------------------------------------------------------------------------


def _requeue(lost: Lease, reason: str) -> None:
    """Let the job wait for another worker, unless too many leases of it were lost.

    Where the worker was to hand in states, it is first looked whether another one can go on from there."""
    job = Job.objects.get(pk=lost.job_id)
    if job.state == JobState.RUNNING.value and lost.contract.get("upload_every"):
        jobs.advance(job, JobState.RESUMING, reason=reason, price_per_epoch=None)
    elif job.state in (JobState.LEASED.value, JobState.RUNNING.value):
        _wait_again(job, reason)


def _wait_again(job: Job, reason: str) -> bool:
    """The lost lease has brought the job no further."""
    if job.attempts + 1 >= settings.LABAPEX.max_attempts:
        reason = f"given up after {job.attempts + 1} leases; the last: {reason}"
        return jobs.advance(job, JobState.FAILED, reason=reason, fault=Fault.WORKER, attempts=F("attempts") + 1)
    return jobs.advance(job, JobState.QUEUED, reason=reason, attempts=F("attempts") + 1, price_per_epoch=None)


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
