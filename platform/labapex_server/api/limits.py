"""How much a request may carry, by whom and where to."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from importlib import import_module

from django.conf import settings
from django.contrib.auth import SESSION_KEY

from labapex_server.lib.http import Scope, headers
from labapex_server.telemetry.offload import offload

SMALL = 8 << 20
"""Bodies that are parsed in memory."""

FORM = "/jobs/new/"
"""The page on which people hand in files."""


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
