"""Enrolment: a host exchanges a code from the portal for an identity. The code is the credential, not a cookie."""

from __future__ import annotations

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from labapex.errors import MalformedInput
from labapex.protocol.api import EnrolReply, EnrolRequest, Problem
from labapex.protocol.canonical import parse
from labapex_server.lib import keys
from labapex_server.lib.errors import Refused
from labapex_server.workers import services as workers

MAX_BODY = 4096
TRIES = 20
WINDOW_SECONDS = 60
"""Enrolments that one address may try in a window. A code has 144 random bits; this spares the database."""


@csrf_exempt
@require_POST
def enrol(request: HttpRequest) -> HttpResponse:
    """`EnrolRequest` to `EnrolReply`, both JSON."""
    if not _may_try(request.META.get("REMOTE_ADDR", "")):
        return _problem(429, "too-many-requests", "too many tries from this address; wait a minute")
    if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BODY:
        return _problem(413, "too-large", f"at most {MAX_BODY} bytes are accepted")
    try:
        asked = parse(EnrolRequest, request.read(MAX_BODY + 1), limit=MAX_BODY)
        worker = workers.enrol(asked.code, asked.name, asked.public_key)
    except MalformedInput as error:
        return _problem(400, "malformed", str(error))
    except Refused as error:
        return _problem(error.status, error.code, str(error))
    reply = EnrolReply(worker=worker.pk, manifest_key=keys.manifest_public_key())
    return HttpResponse(reply.model_dump_json(), content_type="application/json", status=201)


def _may_try(address: str) -> bool:
    key = f"gateway.enrol.{address}"
    cache.add(key, 0, timeout=WINDOW_SECONDS)
    try:
        return cache.incr(key) <= TRIES
    except ValueError:  # it expired between the two lines: a new window
        return True


def _problem(status: int, code: str, detail: str) -> HttpResponse:
    body = Problem(title=code.replace("-", " "), status=status, detail=detail, code=code)
    return HttpResponse(body.model_dump_json(), content_type="application/problem+json", status=status)
