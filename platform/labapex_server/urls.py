"""The four doors by path: REST for programs, the gateway for workers, pages for people, a pulse for the operator."""

from __future__ import annotations

import time
from importlib.util import find_spec

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, include, path

from labapex_server.lib import trust


def healthz(request: HttpRequest) -> HttpResponse:
    """200 where the process answers and its database does; a second line where workers will soon start nothing any more."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    lines = ["ok", *(f"warning: {concern}" for concern in trust.ending(time.time()))]
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain")


_DOORS = (
    ("api/", "labapex_server.api.urls"),
    ("gateway/", "labapex_server.gateway.urls"),
    ("", "labapex_server.web.urls"),
)

urlpatterns: list[URLPattern | URLResolver] = [path("healthz", healthz)]
urlpatterns += [path(prefix, include(module)) for prefix, module in _DOORS if find_spec(module)]
