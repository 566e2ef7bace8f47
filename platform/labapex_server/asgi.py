"""The platform as one ASGI application: pages and REST by Django, the two sockets by Channels."""

from __future__ import annotations

import os
from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labapex_server.settings")
_django = get_asgi_application()


def _lazy(module: str, name: str) -> Any:
    """A consumer as an application that is imported when it is first needed: consumers import models."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        from importlib import import_module

        await getattr(import_module(module), name).as_asgi()(scope, receive, send)

    return application


async def _http(scope: Any, receive: Any, send: Any) -> None:
    """The big files of leases go past Django, which reads a whole upload to disk before any of its code looks at it."""
    if scope["path"].startswith("/gateway/leases/"):
        from labapex_server.gateway import files

        await files.application(scope, receive, send)
    else:
        await _django(scope, receive, send)


application = ProtocolTypeRouter(
    {
        "http": _http,
        "websocket": URLRouter(
            [
                # An agent is no browser: it has no cookies and no origin, it signs a nonce.
                path("gateway/worker/", _lazy("labapex_server.gateway.consumers", "WorkerConsumer")),
                path(
                    "live/jobs/<uuid:job>/",
                    AllowedHostsOriginValidator(
                        AuthMiddlewareStack(_lazy("labapex_server.web.consumers", "LiveConsumer"))
                    ),
                ),
            ]
        ),
    }
)
