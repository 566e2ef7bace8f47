"""What stands around every request that Django answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from labapex_server.lib import logs, metrics


class Watched:
    """Counts requests by the pattern that they matched, and says in the log which job they are about."""

    def __init__(self, answer: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._answer = answer

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        began = time.monotonic()
        response = self._answer(request)
        match = request.resolver_match
        route = "/" + match.route if match is not None else "none"
        metrics.answered(route, request.method or "", response.status_code, time.monotonic() - began)
        return response

    def process_view(self, request: HttpRequest, view: object, args: object, kwargs: dict[str, Any]) -> None:
        if (job := kwargs.get("job", kwargs.get("job_id"))) is not None:
            logs.about(job=job)
