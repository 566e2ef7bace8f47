"""Enrolment of hosts, and what is known of them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction

from labapex.protocol.devices import Device
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex_server.accounts.models import User
from labapex_server.ledger.models import Transfer
from labapex_server.lib import clock, tokens
from labapex_server.lib.errors import Conflict, Refused
from labapex_server.workers.models import EnrolmentCode, Finding, Mark, Worker


def new_code(owner: User) -> tuple[str, datetime]:
    """A code that enrols one host of this owner, and until when."""
    code = secrets.token_hex(16)  # typed on a command line, where a leading "-" would make it a flag
    expires = clock.after(settings.LABAPEX.enrolment_seconds)
    EnrolmentCode.objects.create(digest=tokens.digest(code), owner=owner, created_at=clock.now(), expires_at=expires)
    return code, expires


@transaction.atomic
def enrol(code: str, name: str, public_key: bytes) -> Worker:
    """Exchange a code for a worker. Raises `Refused` for an unknown, used or late code, `Conflict` for a known key."""
    used = EnrolmentCode.objects.filter(digest=tokens.digest(code), used_at=None, expires_at__gt=clock.now())
    if used.update(used_at=clock.now()) != 1:
        raise Refused("this enrolment code is unknown, used or too old; make a new one on the workers page")
    owner = EnrolmentCode.objects.select_related("owner").get(digest=tokens.digest(code)).owner
    try:
        with transaction.atomic():
            return Worker.objects.create(
                owner=owner,
                name=name,
                public_key=public_key,
                price_per_hour=settings.LABAPEX.reference_price_per_hour,
                created_at=clock.now(),
            )
    except IntegrityError:
        raise Conflict("this host's key is enrolled already; use it, or make a new key and enrol again") from None


def known(worker_id: UUID) -> Worker | None:
    """The worker that may connect: enrolled and not banned."""
    return Worker.objects.filter(pk=worker_id, banned=False, owner__is_active=True).first()


def mark(
    worker: Worker,
    finding: Finding,
    *,
    reason: str,
    lease: UUID | None = None,
    rule: str = "",
    deposit: Transfer | None = None,
) -> None:
    """Write down what was found about a worker, and the deposit that it lost by that; nobody ever changes it."""
    Mark.objects.create(
        worker=worker,
        finding=finding.value,
        lease=lease,
        rule=rule,
        reason=reason,
        deposit=deposit,
        at=clock.now(),
    )


@transaction.atomic
def set_banned(worker: Worker, banned: bool, reason: str) -> None:
    """The operator lets a worker have no more jobs, or have jobs again. Raises `Conflict` where that is so already."""
    if Worker.objects.filter(pk=worker.pk, banned=not banned).update(banned=banned) != 1:
        raise Conflict(f"{worker.name} is {'banned already' if banned else 'not banned'}")
    mark(worker, Finding.BANNED if banned else Finding.UNBANNED, reason=reason)


def arrived(worker: Worker, devices: Sequence[Device], *, lacks_torch: bool) -> None:
    """The worker's agent connected, and says what its host has. Of what class it is will be told by its next executable: it may
    have another torch by now, or another device."""
    told = [device.model_dump(mode="json") for device in devices]
    if told != worker.devices or lacks_torch != worker.lacks_torch:
        Worker.objects.filter(pk=worker.pk).update(speed=None, next_trial_at=None)  # what was measured was another host
    Worker.objects.filter(pk=worker.pk).update(
        last_seen_at=clock.now(), devices=told, lacks_torch=lacks_torch, environment=None, torch_build=""
    )


def seen(worker: Worker) -> None:
    """The worker's agent spoke."""
    Worker.objects.filter(pk=worker.pk).update(last_seen_at=clock.now())


def present(ids: Collection[UUID]) -> set[UUID]:
    """The agents of these workers spoke. Returns those that may stay connected."""
    Worker.objects.filter(pk__in=ids).update(last_seen_at=clock.now())
    return set(Worker.objects.filter(pk__in=ids, banned=False, owner__is_active=True).values_list("pk", flat=True))


def ready(worker: Worker, price: int | None, room: Limits | None = None, hours: Sequence[Hours] = ()) -> None:
    """The worker wants work, at this price in micro-credits for an hour; None: at the one on record. `room` is what it says that
    one job may take, `hours` when it takes any, by UTC; none: always."""
    worker.paused = ""
    worker.room = None if room is None else room.model_dump(mode="json")
    worker.hours = [each.model_dump(mode="json") for each in hours]
    if price is not None:
        worker.price_per_hour = price
    worker.save(update_fields=["paused", "price_per_hour", "room", "hours"])


def paused(worker: Worker, reason: str) -> None:
    """The worker wants no work. The reason is its owner's or his agent's own: shown to him, believed by nobody."""
    worker.paused = reason
    worker.save(update_fields=["paused"])
