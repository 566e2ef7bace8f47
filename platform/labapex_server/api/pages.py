"""Lists, a page at a time. A cursor is the place after the last row shown, so that new rows shift nothing."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from labapex_server.lib.errors import Refused

R = TypeVar("R", bound=Model)

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
    text = f"{last.created_at.isoformat()}_{last.pk}"
    return found[:size], base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _size(text: str | None) -> int:
    if text is None:
        return int(settings.LABAPEX.page_size)
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= LARGEST):
        raise Refused(f"'limit' must be a number from 1 to {LARGEST}", errors={"limit": f"1 to {LARGEST}"})
    return int(text)


def _parse(cursor: str, model: type[Model]) -> tuple[datetime, Any]:
    try:
        text = base64.b64decode(cursor[:200] + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        at, _, key = text.partition("_")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        return moment, model._meta.pk.to_python(key)
    except (ValueError, OverflowError, ValidationError):
        raise Refused(
            "this is not a cursor; leave it out to begin with the newest", errors={"cursor": "not one of ours"}
        ) from None
