"""Leases that live: as long as their worker shows it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import QuerySet

from labapex.protocol.states import Fault, LeaseState
from labapex_server.lib import clock
from labapex_server.marketplace.ending import fail
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.workers.models import Worker


def alive(worker: Worker) -> QuerySet[Lease]:
    """The worker's leases that are not over."""
    return Lease.objects.filter(worker=worker, state__in=LIVE)


def heartbeat(worker: Worker, lease_ids: Iterable[UUID]) -> None:
    """The worker showed that these of its leases live."""
    heartbeats([(worker.pk, lease_ids)])


def heartbeats(shown: Iterable[tuple[UUID, Iterable[UUID]]]) -> None:
    """Workers showed that leases of theirs live. What is another's, or over, is passed over."""
    claims = {(lease, worker) for worker, leases in shown for lease in leases}
    live = Lease.objects.filter(pk__in={lease for lease, _ in claims}, state__in=LIVE).values_list("pk", "worker_id")
    now = clock.now()
    Lease.objects.filter(pk__in=[lease for lease, worker in live if (lease, worker) in claims], state__in=LIVE).update(
        heartbeat_at=now, expires_at=now + timedelta(seconds=settings.LABAPEX.lease_seconds)
    )


def reconcile(worker: Worker, in_hand: Iterable[UUID]) -> None:
    """A worker connected and named what it has in hand: a grant that it never received goes back to the queue."""
    for lost in alive(worker).filter(state=LeaseState.GRANTED.value).exclude(pk__in=list(in_hand)):
        fail(lost, "the grant never reached the worker", fault=Fault.NOBODY)


def excuse_live() -> int:
    """The platform was restored from a backup: hosts may have deleted, by its own word, what these leases still owe."""
    return Lease.objects.filter(state__in=LIVE).update(excused=True)


def forgive_silence() -> int:
    """The platform itself was away and could hear nobody: workers have the usual time from now on. Returns how many had less."""
    until = clock.after(settings.LABAPEX.lease_seconds)
    waiting = Lease.objects.filter(state__in=(LeaseState.GRANTED.value, LeaseState.RUNNING.value))
    return waiting.filter(expires_at__lt=until).update(expires_at=until)
