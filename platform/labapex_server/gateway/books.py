"""What the worker's door asks of the stages behind it. Everything here is synchronous and runs off the event loop."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from labapex.errors import LabApexError, Tampered
from labapex.protocol.frames import (
    Grant,
    Hello,
    KeyRelease,
    KeyRequest,
    OpenStates,
    Released,
    hello_bytes,
)
from labapex.protocol.states import LeaseState
from labapex.sealing import verify
from labapex_server.lib.errors import Missing
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker

log = logging.getLogger(__name__)

ENDED = frozenset({LeaseState.SETTLED.value, LeaseState.EXPIRED.value, LeaseState.FAILED.value})


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
    workers.seen(worker, hello.devices)
    marketplace.reconcile(worker, hello.leases)
    marketplace.heartbeat(worker, hello.leases)
    return list(marketplace.alive(worker).values_list("pk", flat=True))


def beat(worker: Worker, leases: Iterable[UUID]) -> bool:
    """Prolong leases. False: the worker was banned meanwhile."""
    if workers.known(worker.pk) is None:
        return False
    workers.seen(worker)
    marketplace.heartbeat(worker, leases)
    return True


def grant(worker: Worker) -> Grant | None:
    """The next lease for this worker, if there is one."""
    granted = marketplace.lease(worker)
    if granted is None:
        return None
    lease, token = granted
    try:
        size = marketplace.executable_parts(lease).size
    except (LabApexError, OSError) as error:
        log.error("lease %s: its executable cannot be made: %s", lease.pk, error)
        marketplace.fail(lease, "the platform could not make its executable")
        return None
    return Grant(
        lease=lease.pk, job=lease.job_id, name=lease.job.name, token=token, size=size, threads=lease.terms.threads
    )


def release_keys(worker: Worker, request: KeyRequest) -> KeyRelease:
    """Keys for the executable that asks. Raises `Refused`."""
    return KeyRelease(
        lease=request.lease, sealed=marketplace.release_keys(own_lease(worker, request.lease), request=request)
    )


def fail(worker: Worker, lease_id: UUID, reason: str) -> None:
    """The lease cannot go on. Nothing happens where it is over already."""
    lease = Lease.objects.select_related("job", "worker").filter(pk=lease_id, worker=worker).first()
    if lease is not None:
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

    challenges: tuple[OpenStates, ...]
    released: tuple[Released, ...]
    jobs: tuple[UUID, ...]
    known: frozenset[UUID]  # those of the leases that are this worker's


def news(worker: Worker, in_hand: Sequence[UUID], challenged: Iterable[UUID]) -> News:
    """Look at the leases a worker has in hand. `challenged` were told their challenge on this connection."""
    told = set(challenged)
    challenges, released, jobs, known = [], [], [], set()
    rows = Lease.objects.filter(pk__in=in_hand, worker=worker).select_related("challenge", "job")
    for lease in rows:
        known.add(lease.pk)
        if lease.state in ENDED:
            reason = lease.reason or lease.job.reason or lease.state
            released.append(Released(lease=lease.pk, reason=reason[:2000]))
            continue
        jobs.append(lease.job_id)
        challenge = getattr(lease, "challenge", None)
        if lease.state == LeaseState.FINISHED.value and challenge is not None and lease.pk not in told:
            challenges.append(
                OpenStates(lease=lease.pk, indices=challenge.indices, deadline=challenge.deadline.timestamp())
            )
    return News(tuple(challenges), tuple(released), tuple(jobs), frozenset(known))


def heartbeat_seconds() -> float:
    return float(settings.LABAPEX.heartbeat_seconds)


def silence_seconds() -> float:
    return float(settings.LABAPEX.lease_seconds)
