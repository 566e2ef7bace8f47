"""What every page's header shows."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from labapex.protocol.api import Scope
from labapex_server.accounts import organisations
from labapex_server.accounts.models import User
from labapex_server.web.views.common import acting_of


def account(request: HttpRequest) -> dict[str, Any]:
    """For whom the signed-in person acts, what they may, and for whom else they could; asked only where a page shows it."""
    user = request.user
    if not isinstance(user, User):
        return {}

    def may() -> set[str]:
        try:
            return {scope.name for scope in acting_of(request).scopes}
        except PermissionDenied:  # told by the page itself
            return {scope.name for scope in Scope}

    return {
        "acting": SimpleLazyObject(lambda: acting_of(request)),
        "may": SimpleLazyObject(may),
        "organisations": SimpleLazyObject(lambda: list(organisations.of(user))),
    }
