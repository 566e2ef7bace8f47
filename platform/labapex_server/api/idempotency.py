"""A POST that makes something may come twice, because an answer got lost: the same `Idempotency-Key` gives the same answer.

A job remembers its own key, for ever (`jobs.services.submit`). Other answers are kept here for a day, sealed, because they
hold what is shown only once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta

from django.db import IntegrityError, transaction
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from labapex.protocol.canonical import Message
from labapex_server.accounts.models import User
from labapex_server.api.models import KeptAnswer
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import KeyReused, Refused

HEADER = "Idempotency-Key"
KEPT = timedelta(days=1)
MAX_LENGTH = 200
PARAMETER = OpenApiParameter(
    HEADER,
    {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH},
    OpenApiParameter.HEADER,
    description="Of your choice, for example a UUID. The same key with the same body gives the same answer.",
)


def key_of(request: Request) -> str | None:
    """The request's key; None where it has none. Raises `Refused`."""
    key = request.headers.get(HEADER)
    if key is not None and not 0 < len(key) <= MAX_LENGTH:
        raise Refused(f"{HEADER} must have 1 to {MAX_LENGTH} characters")
    return key


def once(user: User, request: Request, make: Callable[[], Message]) -> bytes:
    """The body of what `make` makes, or of what it made for this key within a day.

    Of two requests at once with one key the database lets one make something; the other waits for it and gets the same.
    Raises `KeyReused` where the key came with another request before.
    """
    key = key_of(request)
    if key is None:
        return make().model_dump_json().encode()
    asked = hashlib.sha256(f"{request.method} {request.path}\n".encode() + request._request.body).hexdigest()
    KeptAnswer.objects.filter(user=user, created_at__lt=clock.now() - KEPT).delete()
    try:
        with transaction.atomic():
            kept = KeptAnswer.objects.create(user=user, key=key, request=asked, answer=b"", created_at=clock.now())
            body = make().model_dump_json().encode()
            kept.answer = keys.wrap(body, _purpose(user, key))
            kept.save(update_fields=["answer"])
            return body
    except IntegrityError:
        before = KeptAnswer.objects.filter(user=user, key=key).first()
        if before is None:  # not the key was taken
            raise
    if before.request != asked:
        raise KeyReused("this idempotency key came with another request before; choose a new one")
    return keys.unwrap(before.answer, _purpose(user, key))


def _purpose(user: User, key: str) -> str:
    return f"answer:{user.pk}:{key}"
