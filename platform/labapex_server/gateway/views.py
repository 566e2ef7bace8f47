"""Enrolment: a host exchanges a code from the portal for an identity. The code is the credential, not a cookie.

And earnings: a worker asks, by its key, what it was paid."""

from __future__ import annotations

from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from labapex.errors import MalformedInput, Tampered
from labapex.protocol.api import EarningsRequest, EnrolReply, EnrolRequest, earnings_bytes
from labapex.protocol.canonical import parse
from labapex.sealing import verify
from labapex_server.lib import clock, problems
from labapex_server.lib.errors import Refused
from labapex_server.verification import earnings
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker

MAX_BODY = 4096
CLOCK_SECONDS = 300
"""How far a worker's clock may be off, and for how long an overheard request can be repeated: it reads, no more."""

READS = 120
"""Parts of lists of earnings that one address may read in a window."""

TRIES = 20
WINDOW_SECONDS = 60
"""Enrolments that one address may try in a window. A code has 144 random bits; this spares the database."""


@csrf_exempt
@require_POST
def enrol(request: HttpRequest) -> HttpResponse:
    """`EnrolRequest` to `EnrolReply`, both JSON."""
    if (refused := _too_much(request, "enrol", TRIES)) is not None:
        return refused
    try:
        asked = parse(EnrolRequest, request.read(MAX_BODY + 1), limit=MAX_BODY)
        worker = workers.enrol(asked.code, asked.name, asked.public_key)
    except MalformedInput as error:
        return problems.response(400, "invalid", str(error))
    except Refused as error:
        return problems.response(error.status, error.code, str(error))
    reply = EnrolReply(worker=worker.pk)
    return HttpResponse(reply.model_dump_json(), content_type="application/json", status=201)


@csrf_exempt
@require_POST
def earned(request: HttpRequest) -> HttpResponse:
    """`EarningsRequest` to `Earnings`, both JSON. A banned worker may read what it was paid before."""
    if (refused := _too_much(request, "earnings", READS)) is not None:
        return refused
    try:
        asked = parse(EarningsRequest, request.read(MAX_BODY + 1), limit=MAX_BODY)
    except MalformedInput as error:
        return problems.response(400, "invalid", str(error))
    now = clock.now().timestamp()
    if abs(now - asked.at) > CLOCK_SECONDS:
        return problems.response(
            401, "clock", f"the host's clock differs by {abs(now - asked.at):.0f} seconds; set it right"
        )
    worker = Worker.objects.select_related("owner").filter(pk=asked.worker).first()
    try:
        text = earnings_bytes(worker=asked.worker, at=asked.at, skip=asked.skip)
        verify(bytes(worker.public_key) if worker is not None else bytes(32), text, asked.signature)
    except Tampered:
        worker = None
    if worker is None:
        return problems.response(
            401, "unknown-worker", "this worker is not enrolled here; enrol it with a code from the portal"
        )
    return HttpResponse(earnings.of(worker, skip=asked.skip).model_dump_json(), content_type="application/json")


def _too_much(request: HttpRequest, what: str, tries: int) -> HttpResponse | None:
    """The refusal of a request that is too big, or one too many of its address."""
    if not _may_try(f"gateway.{what}.{request.META.get('REMOTE_ADDR', '')}", tries):
        throttled = problems.response(429, "throttled", "too many tries from this address; wait a minute")
        throttled["Retry-After"] = str(WINDOW_SECONDS)
        return throttled
    if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BODY:
        return problems.response(413, "too-large", f"at most {MAX_BODY} bytes are accepted")
    return None


def _may_try(key: str, tries: int) -> bool:
    cache.add(key, 0, timeout=WINDOW_SECONDS)
    try:
        return cache.incr(key) <= tries
    except ValueError:  # it expired between the two lines: a new window
        return True
