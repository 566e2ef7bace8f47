"""`Authorization: Bearer <token>` (RFC 6750), and nothing else: no cookie opens the API, so no other site can use one.

What a token may do stands on the view: `scopes` by method. A view that says nothing is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from labapex.protocol.api import MEANING, Scope
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Token, User
from labapex_server.accounts.services import TokenRefused
from labapex_server.lib.errors import Refused

if TYPE_CHECKING:  # it reads the settings that name this module
    from rest_framework.views import APIView

SCHEME = "Bearer"
NO_TOKEN = "no token was sent; log in with 'labapex login' or set LABAPEX_TOKEN"  # noqa: S105 - words


class MissingScope(Refused):
    status = 403
    code = "missing-scope"


def token_of(header: str) -> Token | None:
    """The token of an Authorization header; None where there is none. Raises `TokenRefused`."""
    scheme, _, secret = header.partition(" ")
    if not scheme:
        return None
    if scheme.lower() not in ("bearer", "token") or not secret.strip():
        raise TokenRefused("send the header 'Authorization: Bearer <token>'")
    return accounts.authenticate_token(secret.strip())


def demand(token: Token, scope: Scope | None) -> None:
    """Return where the token may do this; None is what every token may. Raises `MissingScope`."""
    if scope is not None and scope not in token.granted:
        raise MissingScope(
            f"this needs the scope {scope.value} ({MEANING[scope]}), and the token {token} has only"
            f" {', '.join(token.granted)}; make one that has it"
        )


def needs(**scopes: Scope | None) -> Mapping[str, Scope | None]:
    """A view's `scopes`: what a token needs for each method. None is what every token may."""
    return MappingProxyType(scopes)


class TokenAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, Token] | None:
        try:
            token = token_of(get_authorization_header(request).decode("latin-1"))
        except TokenRefused as error:
            raise AuthenticationFailed(str(error)) from None
        return None if token is None else (token.user, token)

    def authenticate_header(self, request: Request) -> str:
        return SCHEME


class Scoped(BasePermission):
    """Whether the token has the scope that the view names for the method. Raises `MissingScope`."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        scopes: Mapping[str, Scope | None] = getattr(view, "scopes", {})
        method = "GET" if request.method == "HEAD" and "HEAD" not in scopes else str(request.method)
        if not isinstance(request.auth, Token):
            return False
        if method == "OPTIONS" or not hasattr(view, method.lower()):
            return True  # to be told that there is no such method
        if method not in scopes:
            return False
        demand(request.auth, scopes[method])
        return True
