"""How much a request may carry, by whom and where to, and how many of them a token may send."""

from __future__ import annotations

import time
from http.cookies import CookieError, SimpleCookie
from importlib import import_module
from typing import TYPE_CHECKING

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from labapex_server.accounts.models import Token
from labapex_server.lib.http import Scope, headers
from labapex_server.telemetry.offload import offload

if TYPE_CHECKING:  # it reads the settings that name this module
    from rest_framework.views import APIView

SMALL = 8 << 20
"""Bodies that are parsed in memory."""

FORM = "/jobs/new/"
"""The page on which people hand in files."""

TOO_MANY = "this token has sent too many requests; it is accepted again after the time in Retry-After"
_WINDOW = 60


def spend(caller: str) -> float:
    """Count a request of a caller. Seconds to wait where it is one too many in this minute, else 0."""
    now = time.time()
    key = f"api.spent.{caller}.{int(now // _WINDOW)}"
    cache.add(key, 0, timeout=2 * _WINDOW)
    try:
        spent = cache.incr(key)
    except ValueError:  # it was evicted between the two lines
        return 0.0
    return 0.0 if spent <= settings.LABAPEX.api_rate else _WINDOW - now % _WINDOW


class PerCaller(BaseThrottle):
    """`LABAPEX_API_RATE` requests a minute for each token, and for each address that sends none."""

    def allow_request(self, request: Request, view: APIView) -> bool:
        token = request.auth
        caller = f"token.{token.pk}" if isinstance(token, Token) else f"address.{self.get_ident(request)}"
        self._wait = spend(caller)
        return not self._wait

    def wait(self) -> float:
        return self._wait


async def body_limit(scope: Scope) -> int:
    """Bytes. Only somebody who has signed in may send files through a page."""
    if scope["path"] != FORM or not await offload(_signed_in, headers(scope).get("cookie", "")):
        return SMALL
    return int(settings.LABAPEX.data_limit_bytes + settings.LABAPEX.code_limit_bytes + SMALL)


def _signed_in(cookies: str) -> bool:
    try:
        morsel = SimpleCookie(cookies).get(settings.SESSION_COOKIE_NAME)
    except CookieError:
        return False
    if morsel is None:
        return False
    store = import_module(settings.SESSION_ENGINE).SessionStore(session_key=morsel.value)
    return SESSION_KEY in store
