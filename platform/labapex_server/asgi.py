"""The platform as one ASGI application: pages and REST by Django, sockets by Channels, big files by neither."""

from __future__ import annotations

import os
import re
import time
from importlib import import_module
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

from labapex_server.lib import logs, metrics
from labapex_server.lib.http import BodyLimit, Receive, Scope, Send

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labapex_server.settings")
_django: Any = get_asgi_application()


def _lazy(module: str, name: str, *, consumer: bool = False) -> Any:
    """An application that is imported when it is first needed: not before the models are ready."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        found = getattr(import_module(module), name)
        await (found.as_asgi() if consumer else found)(scope, receive, send)

    return application


async def _body_limit(scope: Scope) -> int:
    from labapex_server.api.limits import body_limit

    return await body_limit(scope)


_pages = BodyLimit(_django, _body_limit)
_STREAMED = (
    (re.compile(r"/gateway/leases/.*"), None, _lazy("labapex_server.gateway.files", "application")),
    (re.compile(r"/api/v1/blobs/[^/]+/"), "PUT", _lazy("labapex_server.api.uploads", "application")),
)


async def _http(scope: Scope, receive: Receive, send: Send) -> None:
    """Each request gets an id, which stands in its answer's `X-Request-ID` and on each line of the log that is about it."""
    request = logs.new_request()

    async def named(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.start":
            event = {**event, "headers": [*event["headers"], (b"x-request-id", request.encode())]}
        await send(event)

    with logs.on(request=request):
        await _routed(scope, receive, named)


async def _routed(scope: Scope, receive: Receive, send: Send) -> None:
    for pattern, method, streamed in _STREAMED:
        if pattern.fullmatch(scope["path"]) and method in (None, scope["method"]):
            await _counted(pattern.pattern, streamed, scope, receive, send)
            return
    await _pages(scope, receive, send)


async def _counted(route: str, application: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """What Django's middleware does for the requests that it sees."""
    began, status = time.monotonic(), 0  # 0: the other side left before it had an answer

    async def watch(event: dict[str, Any]) -> None:
        nonlocal status
        status = event.get("status", status)
        await send(event)

    try:
        await application(scope, receive, watch)
    finally:
        metrics.answered(route, scope["method"], status, time.monotonic() - began)


_live = _lazy("labapex_server.web.consumers", "LiveConsumer", consumer=True)
application = ProtocolTypeRouter(
    {
        "http": _http,
        "websocket": URLRouter(
            [
                # An agent is no browser: it has no cookies and no origin, it signs a nonce.
                path("gateway/worker/", _lazy("labapex_server.gateway.consumers", "WorkerConsumer", consumer=True)),
                path("live/jobs/<uuid:job>/", AllowedHostsOriginValidator(AuthMiddlewareStack(_live))),
            ]
        ),
    }
)
