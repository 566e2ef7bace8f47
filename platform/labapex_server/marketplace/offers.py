"""Offers: what connected hosts have, at which price, and with which reputation.

What a client sees of a host is in `labapex.protocol.api.Offer`: nothing of its owner, its key or its address."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from labapex.protocol.api import Offer, OfferOrder
from labapex.protocol.devices import Device
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex.protocol.spec import Constraints
from labapex.protocol.states import LeaseState
from labapex_server.jobs import supply
from labapex_server.lib import clock
from labapex_server.marketplace.matching import Host, barred, lacking, meets
from labapex_server.marketplace.models import Lease
from labapex_server.workers import reputation
from labapex_server.workers.models import Worker
from labapex_server.workers.reputation import Reputation

_GROWING: dict[OfferOrder, Callable[[Offer], float]] = {
    OfferOrder.PRICE: lambda offer: float(offer.price_per_hour),
    OfferOrder.VALUE: lambda offer: offer.price_per_hour / offer.speed if offer.speed else float("inf"),
    OfferOrder.SPEED: lambda offer: -(offer.speed or 0.0),
    OfferOrder.REPUTATION: lambda offer: 1 / (1 + offer.verified) - offer.reputation,  # of equal ones who has done more
}


def place(offer: Offer, order: OfferOrder) -> tuple[float, str]:
    """Where an offer stands in a list of this order, the best first."""
    return _GROWING[order](offer), str(offer.id)


@dataclass(frozen=True)
class Found:
    """The offers that meet some constraints, in order; `lacking` says what no connected host has where there are none."""

    offers: list[Offer]
    lacking: str | None

    @property
    def free(self) -> int:
        """How many of them could take a job now."""
        return sum(offer.free for offer in self.offers)


def find(wanted: Constraints, order: OfferOrder) -> Found:
    workers = connected()
    fitting = [worker for worker in workers if meets(Host.of(worker), wanted)]
    taken, reputations = busy(fitting), reputation.of_each(fitting)
    offers = [_offer(worker, reputations[worker.pk], free=worker.pk not in taken) for worker in fitting]
    return Found(
        sorted(offers, key=lambda offer: place(offer, order)), lacking([Host.of(worker) for worker in workers], wanted)
    )


def connected() -> list[Worker]:
    """The workers that are there, and to which jobs may go."""
    since = clock.after(-settings.LABAPEX.lease_seconds)
    there = list(
        Worker.objects.select_related("deposit").filter(banned=False, owner__is_active=True, last_seen_at__gte=since)
    )
    held = supply.held() if any(worker.lacks_torch for worker in there) else supply.NOTHING
    return [worker for worker in there if Host.of(worker).device is not None and barred(worker, held) is None]


def busy(workers: Collection[Worker]) -> set[UUID]:
    """Those that take no job now: at work, or paused."""
    at_work = Lease.objects.filter(worker__in=workers, state__in=(LeaseState.GRANTED.value, LeaseState.RUNNING.value))
    return set(at_work.values_list("worker_id", flat=True)) | {worker.pk for worker in workers if worker.paused}


def _offer(worker: Worker, known: Reputation, *, free: bool) -> Offer:
    host = Host.of(worker)
    assert host.device is not None
    same = [device for device in map(Device.model_validate, worker.devices) if device.usable]
    return Offer(
        id=worker.pk,
        name=worker.name,
        device=host.name,
        devices=sum(str(device) == str(host.device) for device in same),
        memory=host.device.memory,
        room=Limits.model_validate(worker.room) if worker.room else None,
        hours=tuple(map(Hours.model_validate, worker.hours)),
        price_per_hour=worker.price_per_hour,
        speed=worker.speed,
        deposit=worker.deposited,
        reputation=known.score,
        record=known.reasons,
        verified=known.verified,
        reliability=known.reliability,
        free=free,
    )
