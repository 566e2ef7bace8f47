"""Accounts and API tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta

from django.db import transaction

from labapex_server.accounts.models import Token, User
from labapex_server.lib import clock

_PREFIX = "lax_"
_USED_RESOLUTION = timedelta(minutes=1)


@transaction.atomic
def create_user(username: str, *, password: str, email: str = "") -> User:
    return User.objects.create_user(username=username, password=password, email=email)


def issue_token(user: User, *, name: str) -> str:
    """A new token's secret. It is shown this once; only its digest is kept."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    Token.objects.create(
        user=user, name=name, prefix=secret[: len(_PREFIX) + 4], digest=_digest(secret), created_at=clock.now()
    )
    return secret


def authenticate_token(secret: str) -> User | None:
    """The active user whose token this is.

    The row is found by the SHA-256 of 256 random bits, so a timing of the look-up says nothing about another secret.
    """
    if not secret.startswith(_PREFIX) or len(secret) > 200:
        return None
    digest = _digest(secret)
    token = Token.objects.select_related("user").filter(digest=digest).first()
    if token is None or not hmac.compare_digest(token.digest, digest):
        return None
    now = clock.now()
    if not token.user.is_active or (token.expires_at is not None and token.expires_at <= now):
        return None
    if token.last_used_at is None or now - token.last_used_at > _USED_RESOLUTION:  # not a write for each request
        Token.objects.filter(pk=token.pk).update(last_used_at=now)
    return token.user


def revoke_token(user: User, *, token_id: int) -> bool:
    """Whether there was such a token of this user."""
    deleted, _ = Token.objects.filter(user=user, pk=token_id).delete()
    return bool(deleted)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
