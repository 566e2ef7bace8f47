"""What the worker's door asks of the stages behind it. Everything here is synchronous and runs off the event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings
from django.db import transaction

from labapex.errors import LabApexError, Tampered
from labapex.protocol.frames import (
    Grant,
    Hello,
    KeyRelease,
    KeyRequest,
    OpenChunks,
    OpenStates,
    Released,
    hello_bytes,
)
from labapex.protocol.states import Fault, LeaseState
from labapex.sealing import verify
from labapex_server.lib.errors import Missing
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker

log = logging.getLogger(__name__)

ENDED = frozenset(state.value for state in LeaseState if state.value not in LIVE)


def admit(hello: Hello, nonce: bytes) -> Worker | None:
    """The worker that signed this connection's nonce; None for all others, whatever is wrong with them."""
    worker = workers.known(hello.worker)
    if worker is None:
        return None
    try:
        verify(bytes(worker.public_key), hello_bytes(worker=hello.worker, nonce=nonce), hello.signature)
    except Tampered:
        return None
    return worker


def arrive(worker: Worker, hello: Hello) -> list[UUID]:
    """Take note of a worker that connected; its leases that live."""
    workers.arrived(worker, hello.devices, lacks_torch=hello.lacks_torch)
    marketplace.reconcile(worker, hello.leases)
    marketplace.heartbeat(worker, hello.leases)
    return list(marketplace.alive(worker).values_list("pk", flat=True))


def beat(beats: Sequence[tuple[UUID, Collection[UUID]]]) -> list[bool]:
    """Prolong leases of workers, for many connections at once. False: the worker was banned meanwhile."""
    with transaction.atomic():
        present = workers.present({worker for worker, _ in beats})
        marketplace.heartbeats([(worker, leases) for worker, leases in beats if worker in present])
    return [worker in present for worker, _ in beats]


def queue(asked: Sequence[None]) -> list[marketplace.Queue]:
    """What waits for workers, for many connections at once."""
    return [marketplace.queue()] * len(asked)


def grant(worker: Worker) -> Grant | None:
    """The next lease for this worker, if there is one."""
    if not marketplace.queue().jobs:
        return None  # another one took it, while this one waited for its turn to ask
    granted = marketplace.lease(worker)
    if granted is None:
        return None
    lease, token = granted
    try:
        size = marketplace.executable_parts(lease).size
    except (LabApexError, OSError) as error:
        log.error("lease %s: its executable cannot be made: %s", lease.pk, error)
        marketplace.fail(lease, "the platform could not make its executable", fault=Fault.PLATFORM)
        return None
    return Grant(
        lease=lease.pk, job=lease.job_id, name=lease.job.name, token=token, size=size, threads=lease.terms.threads
    )


def release_keys(worker: Worker, request: KeyRequest) -> KeyRelease:
    """Keys for the executable that asks. Raises `Refused`."""
    return KeyRelease(
        lease=request.lease, sealed=marketplace.release_keys(own_lease(worker, request.lease), request=request)
    )


def fail(worker: Worker, lease_id: UUID, reason: str, declined: bool = False) -> None:
    """The lease cannot go on: its run, or the opening of its states; or it was `declined`, for lack of room, before anything was
    started. Nothing happens where it is over already."""
    lease = Lease.objects.select_related("job", "worker").filter(pk=lease_id, worker=worker).first()
    if lease is not None and lease.state == LeaseState.FINISHED.value:
        verification.withhold(lease, reason)
    elif lease is not None and declined and lease.state == LeaseState.GRANTED.value:
        marketplace.decline(lease, reason)
    elif lease is not None:
        marketplace.fail(lease, reason, script=telemetry.script_failure(lease))


def own_lease(worker: Worker, lease_id: UUID) -> Lease:
    """Raises `Missing`, also for another's lease: its existence is nobody's business."""
    lease = Lease.objects.select_related("job", "worker").filter(pk=lease_id, worker=worker).first()
    if lease is None:
        raise Missing("you have no such lease; delete its files")
    return lease


@dataclass(frozen=True)
class News:
    """What changed about a worker's leases that it must hear of, and the jobs whose bells to listen to."""

    stopped: tuple[UUID, ...]  # leases whose client stopped the job
    challenges: dict[tuple[UUID, int], OpenChunks | OpenStates]  # by lease and round
    released: tuple[Released, ...]
    jobs: tuple[UUID, ...]
    known: frozenset[UUID]  # those of the leases that are this worker's


@dataclass(frozen=True)
class Asked:
    """What a connection wants news of. `told` are the rounds of challenges that it heard of already; `states`: also whether a
    state is to be handed in, which takes longer to say."""

    worker: UUID
    in_hand: frozenset[UUID]
    told: frozenset[tuple[UUID, int]]
    states: bool


def news(asked: Sequence[Asked]) -> list[News]:
    """Look at the leases that workers have in hand, for many connections at once."""
    in_hand = {lease for each in asked for lease in each.in_hand}
    rows = Lease.objects.filter(pk__in=in_hand).select_related("challenge").defer("manifest")
    leases = {lease.pk: lease for lease in rows}
    return [_news(each, leases) for each in asked]


def _news(asked: Asked, leases: Mapping[UUID, Lease]) -> News:
    challenges: dict[tuple[UUID, int], OpenChunks | OpenStates] = {}
    stopped, released, jobs, known = [], [], [], set()
    for lease in (leases[pk] for pk in asked.in_hand if pk in leases and leases[pk].worker_id == asked.worker):
        known.add(lease.pk)
        if lease.state in ENDED:
            reason = lease.reason or lease.job.reason or lease.state
            released.append(Released(lease=lease.pk, reason=reason[:2000]))
            continue
        jobs.append(lease.job_id)
        if lease.contract.get("stopped"):
            stopped.append(lease.pk)
        if asked.states and lease.state == LeaseState.RUNNING.value and lease.contract.get("upload_every"):
            wanted = verification.wanted_to_keep(lease)
            if (
                wanted is not None and (lease.pk, -1 - wanted) not in asked.told
            ):  # rounds of challenges are no negative numbers
                until = time.time() + settings.LABAPEX.opening_seconds
                challenges[lease.pk, -1 - wanted] = OpenStates(lease=lease.pk, indices=(wanted,), deadline=until)
        challenge = getattr(lease, "challenge", None)
        if lease.state != LeaseState.FINISHED.value or challenge is None or not challenge.waiting:
            continue
        if (lease.pk, challenge.round) not in asked.told:
            challenges[lease.pk, challenge.round] = _asked(lease, challenge)
    return News(tuple(stopped), challenges, tuple(released), tuple(jobs), frozenset(known))


def _asked(lease: Lease, challenge: Challenge) -> OpenChunks | OpenStates:
    deadline = challenge.deadline.timestamp()
    if challenge.round == 0:
        return OpenChunks(lease=lease.pk, number=challenge.chunk, indices=challenge.wanted, deadline=deadline)
    return OpenStates(lease=lease.pk, indices=challenge.wanted, deadline=deadline)


def is_stopped(worker: Worker, lease: UUID) -> bool:
    """Whether this worker's lease is no longer running because its client stopped the job."""
    found = Lease.objects.filter(pk=lease, worker=worker, state=LeaseState.FINISHED.value).first()
    return found is not None and found.terms.stopped is not None


def heartbeat_seconds() -> float:
    return float(settings.LABAPEX.heartbeat_seconds)


def states_seconds() -> float:
    """Between two looks whether a training host is to hand a state in."""
    return float(settings.LABAPEX.handover_seconds) / 8


def silence_seconds() -> float:
    return float(settings.LABAPEX.lease_seconds)
