"""Brings what the database keeps under the wrapping key under the present one, while the platform runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from allauth.mfa.models import Authenticator
from django.db.models import Model

from labapex_server.accounts.adapters import SECOND_FACTOR
from labapex_server.alerts import services as alerts
from labapex_server.alerts.models import Channels
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Job
from labapex_server.lib import keys
from labapex_server.marketplace import key_release
from labapex_server.marketplace.models import Lease


@dataclass(frozen=True)
class Wrapped:
    """A column of wrapped secrets, and what each is wrapped for."""

    model: type[Model]
    column: str
    purpose: Callable[[Any], str]


COLUMNS = (
    Wrapped(Blob, "wrapped_key", lambda blob: blobs.purpose(blob.owner_id, blob.digest)),
    Wrapped(Job, "wrapped_content_key", jobs.content_purpose),
    Wrapped(Lease, "wrapped_run_key", lambda lease: key_release.run_purpose(lease.pk)),
    Wrapped(Channels, "wrapped_secret", lambda channels: alerts.purpose(channels.user)),
)
"""All that lasts. Kept answers of the API and uploads that broke off are wrapped too, and are gone a day later."""


def rewrap() -> int:
    """Returns how many were under another key. Any number of processes may, and each may die. Raises `Tampered`."""
    changed = 0
    for each in COLUMNS:
        rows = each.model._default_manager.exclude(**{each.column: None}).only("pk", each.column, *_NEEDED[each.model])
        for row in rows.order_by("pk").iterator(chunk_size=500):
            before = bytes(getattr(row, each.column))
            new = keys.rewrap(before, each.purpose(row))
            if new is not None:
                same = each.model._default_manager.filter(pk=row.pk, **{each.column: before})
                changed += same.update(**{each.column: new})
    return changed + _second_factors()


def _second_factors() -> int:
    """Likewise of what django-allauth keeps, as its adapter sealed it: secrets of authenticator apps, and recovery codes."""
    changed = 0
    for row in Authenticator.objects.order_by("pk").iterator(chunk_size=500):
        data = {name: _resealed(value) if name in _SEALED else value for name, value in row.data.items()}
        if data != row.data:
            changed += Authenticator.objects.filter(pk=row.pk, data=row.data).update(data=data)
    return changed


def _resealed(value: str | list[str]) -> Any:
    if isinstance(value, list):
        return [_resealed(each) for each in value]
    new = keys.rewrap(bytes.fromhex(value), SECOND_FACTOR)
    return value if new is None else new.hex()


_SEALED = frozenset({"secret", "seed", "migrated_codes"})


_NEEDED: dict[type[Model], tuple[str, ...]] = {Blob: ("owner_id", "digest"), Job: (), Lease: (), Channels: ()}
