"""Accounts and API tokens. A token's secret is `apex_`, 40 random characters and a checksum of 6.

The prefix lets scanners of repositories recognise one that leaked; the checksum (CRC-32, as GitHub's tokens have it) lets
them, and us, tell a token from a typing error without asking a database.
"""

from __future__ import annotations

import hmac
import secrets
import string
import zlib
from collections.abc import Iterable
from datetime import timedelta

from allauth.account.adapter import get_adapter
from allauth.mfa.utils import is_mfa_enabled
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest

from labapex.protocol.api import TOKEN_DAYS, Scope
from labapex_server.accounts.models import Token, User
from labapex_server.accounts.organisations import Acting, NoMember, acting
from labapex_server.lib import clock, tokens
from labapex_server.lib.errors import Refused

_PREFIX = "apex_"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM = 40  # characters of log2(62) bits: 238 bits
_CHECKSUM = 6
_SHOWN = len(_PREFIX) + 4
_USED_RESOLUTION = timedelta(minutes=1)


class TokenRefused(Refused):
    """The token opens nothing. The message says which one was sent, and never more of it than its prefix."""

    status = 401
    code = "not-logged-in"


class WrongPassword(TokenRefused):
    pass


class TooManyTries(Refused):
    """`wait`: seconds."""

    status = 429
    code = "throttled"
    wait = 300


class NeedsSecondFactor(Refused):
    status = 403
    code = "second-factor"


@transaction.atomic
def create_user(username: str, *, password: str) -> User:
    return User.objects.create_user(username=username, password=password)


def authenticate_password(request: HttpRequest, *, name: str, password: str) -> User:
    """The active account of this user name or e-mail address, where its password alone opens it.

    Raises `WrongPassword`, `NeedsSecondFactor`, and `TooManyTries` after as many wrong ones as at the sign-in page.
    """
    login = {"username": name, **({"email": name} if "@" in name else {})}
    try:
        user = get_adapter(request).authenticate(request, password=password, **login)
    except ValidationError as error:
        raise TooManyTries(" ".join(error.messages)) from None  # the only thing that is checked beforehand
    if not isinstance(user, User) or not user.is_active:
        raise WrongPassword("user name and password do not belong together")
    if has_second_factor(user):
        raise NeedsSecondFactor(
            "this account has a second factor, so its password alone opens nothing; 'labapex login' without a user name"
            " lets a browser confirm it"
        )
    return user


def has_second_factor(user: User) -> bool:
    """Whether signing in takes more than a password."""
    return bool(is_mfa_enabled(user))


def lock(user: User) -> None:
    """Within a transaction: whoever else locks the account waits for its end."""
    User.objects.select_for_update(no_key=True).get(pk=user.pk)


def issue_token(
    user: User,
    *,
    name: str,
    scopes: Iterable[Scope] = tuple(Scope),
    days: int | None = TOKEN_DAYS,
    by: Acting | None = None,
) -> str:
    """A new token's secret. It is shown this once; only its digest is kept. `days` None: it does not expire.
    `by`: who acts for the user, where that is an organisation."""
    return new_token(user, name=name, scopes=scopes, days=days, by=by)[0]


def new_token(
    user: User, *, name: str, scopes: Iterable[Scope], days: int | None, by: Acting | None = None
) -> tuple[str, Token]:
    """A new token's secret and its row; see `issue_token`. Raises `Refused` where a role allows nothing of what was asked."""
    by = by or acting(user, None)
    secret = _PREFIX + _with_checksum("".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM)))
    now = clock.now()
    granted = sorted({Scope(scope).value for scope in scopes} & by.scopes)
    if not granted:
        raise Refused(f"your role in {by.principal} allows nothing of what is asked for")
    token = Token.objects.create(
        user=user,
        made_by=by.person,
        name=name,
        prefix=secret[:_SHOWN],
        digest=tokens.digest(secret),
        scopes=granted,
        created_at=now,
        expires_at=None if days is None else now + timedelta(days=days),
    )
    return secret, token


def authenticate_token(secret: str) -> Token:
    """The live token of an active user whose secret this is. Raises `TokenRefused`.

    The row is found by the SHA-256 of 238 random bits, so a timing of the look-up says nothing about another secret.
    """
    hint = f"the token that begins with '{_printable(secret[:_SHOWN])}'"
    if not well_formed(secret):
        raise TokenRefused(f"{hint} is not one: it is cut, mistyped or of another site; log in with 'labapex login'")
    digest = tokens.digest(secret)
    token = Token.objects.select_related("user", "made_by").filter(digest=digest).first()
    if token is None or not hmac.compare_digest(token.digest, digest):
        raise TokenRefused(f"{hint} is unknown here; log in again with 'labapex login'")
    now = clock.now()
    if token.revoked_at is not None:
        raise TokenRefused(f"the token {token} was revoked on {token.revoked_at:%Y-%m-%d}; log in with 'labapex login'")
    if token.expires_at is not None and token.expires_at <= now:
        raise TokenRefused(f"the token {token} expired on {token.expires_at:%Y-%m-%d}; log in with 'labapex login'")
    if not token.user.is_active or not token.made_by.is_active:
        raise TokenRefused(f"the account of the token {token} is closed")
    if token.user.is_organisation:
        try:
            allowed = acting(token.made_by, token.user_id).scopes
        except NoMember:
            raise TokenRefused(f"who made the token {token} is not a member of {token.user} any more") from None
        token.scopes = [scope for scope in token.scopes if scope in allowed]  # a role may have shrunk; not saved
    if token.last_used_at is None or now - token.last_used_at > _USED_RESOLUTION:  # not a write for each request
        Token.objects.filter(pk=token.pk).update(last_used_at=now)
    return token


def live_tokens(by: Acting) -> QuerySet[Token]:
    """Those that somebody may see and revoke: all of the principal's, or only their own, as their role is."""
    live = Token.objects.filter(user=by.principal, revoked_at=None)
    return live if by.governs else live.filter(made_by=by.person)


def revoke_token(by: Acting, *, token_id: int) -> bool:
    """Whether there was such a token of theirs, not revoked before."""
    return bool(live_tokens(by).filter(pk=token_id).update(revoked_at=clock.now()))


def well_formed(secret: str) -> bool:
    """Whether this can be a token at all: prefix, alphabet, length and checksum."""
    body = secret.removeprefix(_PREFIX)
    if not secret.startswith(_PREFIX) or len(body) != _RANDOM + _CHECKSUM or not set(body) <= set(_ALPHABET):
        return False
    return body == _with_checksum(body[:_RANDOM])


def _with_checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return body + digits


def _printable(text: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
