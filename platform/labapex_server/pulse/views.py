"""What machines ask of a platform: does it live, can it serve, how is it. `/healthz` and `/readyz` are for anybody, `/metrics`
for the operator: by a token, or from this machine."""

from __future__ import annotations

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from labapex_server.pulse.books import Books
from labapex_server.pulse.checks import checks

_TEXT = "text/plain; charset=utf-8"
_FORWARDED = (
    "HTTP_FORWARDED",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_REAL_IP",
)
_LOCAL = ("localhost", "127.0.0.1", "::1")

_books = CollectorRegistry()
_books.register(Books())


@never_cache
@require_GET
def healthz(request: HttpRequest) -> HttpResponse:
    """200 while the process answers: nothing behind it is asked, since to start it anew would mend none of that."""
    return HttpResponse("ok\n", content_type=_TEXT)


@never_cache
@require_GET
def readyz(request: HttpRequest) -> HttpResponse:
    """503 where this process can serve nobody. Why is told to those who may read the metrics, to others what."""
    found, knows = checks(), _may_know(request)
    lines = []
    for check in found:
        state = "ok" if not check.problem else "failed" if check.needed else "warning"
        lines.append(f"{state} {check.name}" + (f": {check.problem}" if check.problem and knows else ""))
    status = 503 if any(check.problem and check.needed for check in found) else 200
    return HttpResponse("\n".join(lines) + "\n", content_type=_TEXT, status=status)


@never_cache
@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus' text format."""
    if not _may_know(request):
        text = "send 'Authorization: Bearer' with LABAPEX_METRICS_TOKEN, or ask from the platform's own machine\n"
        return HttpResponse(text, content_type=_TEXT, status=403)
    return HttpResponse(generate_latest(REGISTRY) + generate_latest(_books), content_type=CONTENT_TYPE_LATEST)


def _may_know(request: HttpRequest) -> bool:
    token = settings.LABAPEX.metrics_token.get_secret_value()
    if token:
        sent = request.headers.get("Authorization", "")
        return hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())
    return _from_here(request)


def _from_here(request: HttpRequest) -> bool:
    """Asked by a program on this machine: not through a proxy, which is on it too, nor by a page in its browser."""
    if any(name in request.META for name in _FORWARDED):
        return False
    try:
        here = ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False
    return here and urlsplit(f"//{request.get_host()}").hostname in _LOCAL
