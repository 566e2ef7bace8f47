"""What stands around every request that Django answers."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from labapex_server.lib import metrics


def counted(answer: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Counts requests by the pattern that they matched."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        began = time.monotonic()
        response = answer(request)
        match = request.resolver_match
        route = "/" + match.route if match is not None else "none"
        metrics.answered(route, request.method or "", response.status_code, time.monotonic() - began)
        return response

    return middleware
