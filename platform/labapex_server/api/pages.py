"""Lists, a page at a time. A cursor is the place after the last row shown, so that new rows shift nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from labapex_server.lib.errors import Refused

R = TypeVar("R", bound=Model)
S = TypeVar("S")

LARGEST = 100
PARAMETERS = [
    OpenApiParameter("cursor", str, description="`next` of the page before; left out for the first page."),
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": LARGEST},
        description="Rows of a page. A page may have fewer; only `next` = null says that it is the last.",
    ),
]


def page(rows: QuerySet[R], request: Request) -> tuple[list[R], str | None]:
    """The newest rows after the cursor that was asked with, and the next cursor. Rows must have a `created_at`.

    Raises `Refused` for a cursor or a limit that is none."""
    cursor, size = request.query_params.get("cursor", ""), _size(request.query_params.get("limit"))
    rows = rows.order_by("-created_at", "-pk")
    if cursor:
        at, key = _parse(cursor, rows.model)
        rows = rows.filter(Q(created_at__lt=at) | Q(created_at=at, pk__lt=key))
    found = list(rows[: size + 1])
    if len(found) <= size:
        return found, None
    last: Any = found[size - 1]
    return found[:size], _encode(f"{last.created_at.isoformat()}_{last.pk}")


def page_of(rows: Sequence[S], place: Callable[[S], tuple[float, str]], request: Request) -> tuple[list[S], str | None]:
    """The same of rows that are in memory, in the order of their places. Raises `Refused`."""
    cursor, size = request.query_params.get("cursor", ""), _size(request.query_params.get("limit"))
    after = _parse_place(cursor) if cursor else (-math.inf, "")
    found = [row for row in rows if place(row) > after][: size + 1]
    if len(found) <= size:
        return found, None
    key, name = place(found[size - 1])
    return found[:size], _encode(f"{key!r}_{name}")


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    """Raises `ValueError`."""
    return base64.b64decode(cursor[:200] + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()


def _size(text: str | None) -> int:
    if text is None:
        return int(settings.LABAPEX.page_size)
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= LARGEST):
        raise Refused(f"'limit' must be a number from 1 to {LARGEST}", errors={"limit": f"1 to {LARGEST}"})
    return int(text)


def _parse(cursor: str, model: type[Model]) -> tuple[datetime, Any]:
    try:
        at, _, key = _decode(cursor).partition("_")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        return moment, model._meta.pk.to_python(key)
    except (ValueError, OverflowError, ValidationError):
        raise _no_cursor() from None


def _parse_place(cursor: str) -> tuple[float, str]:
    try:
        key, _, name = _decode(cursor).partition("_")
        return float(key), name
    except ValueError:
        raise _no_cursor() from None


def _no_cursor() -> Refused:
    return Refused("this is not a cursor; leave it out to begin anew", errors={"cursor": "not one of ours"})
