"""`Authorization: Token <secret>`, and nothing else: no cookie opens the API, so no other site can use one."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User


def user_of(header: str) -> User | None:
    """The user of an Authorization header; None where there is none. Raises `AuthenticationFailed`."""
    scheme, _, secret = header.partition(" ")
    if not scheme:
        return None
    if scheme.lower() != "token" or not secret.strip():
        raise AuthenticationFailed("send the header 'Authorization: Token <token>'")
    secret = secret.strip()
    user = accounts.authenticate_token(secret)
    if user is None:
        raise AuthenticationFailed(
            f"the token that begins with {secret[:8]!r} is not valid any more; log in again with 'labapex login'"
        )
    return user


class TokenAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[User, None] | None:
        user = user_of(get_authorization_header(request).decode("latin-1"))
        return None if user is None else (user, None)

    def authenticate_header(self, request: Request) -> str:
        return "Token"
