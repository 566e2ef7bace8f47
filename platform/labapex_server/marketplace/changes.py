"""How a lease gets from one state into another: by compare-and-swap only."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from labapex.protocol.states import LeaseState
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.models import Lease


def change(lease: Lease, before: LeaseState, after: LeaseState, **fields: Any) -> None:
    """Raises `Conflict` where the lease is in another state than `before`."""
    if not try_change(lease, before, after, **fields):
        raise Conflict(f"the lease is {lease.state}")


def try_change(
    lease: Lease, before: LeaseState, after: LeaseState, *, among: QuerySet[Lease] | None = None, **fields: Any
) -> bool:
    """False where the lease is in another state than `before`, or none of `among` any more. `lease` is as it is now."""
    rows = Lease.objects.filter(pk=lease.pk) if among is None else among
    changed = rows.filter(state=before.value).update(state=after.value, **fields)
    lease.refresh_from_db()
    return bool(changed)
