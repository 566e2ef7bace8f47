"""Logging a program in by a person's browser (RFC 8628): the program shows a short code, the person enters it in the
portal and sees what the program will be able to do, and only then is there a token. No password passes the program.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import F, Q

from labapex.protocol.api import TokenTerms
from labapex_server.accounts import organisations
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import DeviceLogin, Token, User
from labapex_server.lib import clock, tokens
from labapex_server.lib.errors import Refused

LIFE_SECONDS = 600
INTERVAL_SECONDS = 5
SLOWER_SECONDS = 5
"""By which the interval grows each time a program polls too soon (RFC 8628, 3.5)."""

_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowel, so no word; nothing that is taken for a digit (RFC 8628, 6.1)
_LENGTH = 8  # 34 bits, for ten minutes, at ten tries a minute
_TRIES = 5


class Pending(Refused):
    code = "authorization-pending"


class SlowDown(Refused):
    code = "slow-down"


class Denied(Refused):
    code = "access-denied"


class Expired(Refused):
    code = "expired-token"


def begin(terms: TokenTerms, *, address: str) -> tuple[str, str]:
    """(device code, user code) of a new request; `address` is shown to whoever is to allow it."""
    now = clock.now()
    DeviceLogin.objects.filter(expires_at__lt=now).delete()
    for _ in range(_TRIES):
        device, letters = secrets.token_urlsafe(32), "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
        try:
            with transaction.atomic():
                DeviceLogin.objects.create(
                    device_digest=tokens.digest(device),
                    user_digest=tokens.digest(letters),
                    name=terms.name,
                    organisation=terms.organisation or "",
                    scopes=sorted({scope.value for scope in terms.scopes}),
                    days=terms.days,
                    address=address[:64],
                    created_at=now,
                    expires_at=now + timedelta(seconds=LIFE_SECONDS),
                    interval=INTERVAL_SECONDS,
                )
        except IntegrityError:  # these letters are in use just now
            continue
        return device, f"{letters[:4]}-{letters[4:]}"
    raise RuntimeError("five user codes in a row were taken")


def waiting(user_code: str) -> DeviceLogin | None:
    """The request that this code stands for, as long as nobody decided on it. Spaces, hyphens and case do not matter."""
    letters = "".join(c for c in user_code.upper() if c.isalnum())[:100]
    return DeviceLogin.objects.filter(
        user_digest=tokens.digest(letters), decided_by=None, expires_at__gt=clock.now()
    ).first()


def decide(request: DeviceLogin, user: User, *, allow: bool) -> bool:
    """A person's word on a request. False: somebody was first, or it is too late. Raises `NoMember` for who may not act for the
    organisation that it is for."""
    if allow:
        organisations.acting(user, request.organisation or None)
    undecided = DeviceLogin.objects.filter(pk=request.pk, decided_by=None, expires_at__gt=clock.now())
    return bool(undecided.update(decided_by=user, allowed=allow))


def poll(device_code: str) -> tuple[str, Token]:
    """The token's secret and row, once, after a person allowed it. Raises `Pending`, `SlowDown`, `Denied` or `Expired`."""
    now = clock.now()
    found = DeviceLogin.objects.select_related("decided_by").filter(device_digest=tokens.digest(device_code)).first()
    if found is None or found.expires_at <= now:
        raise Expired("this login is unknown, used or too old; begin again with 'labapex login'")
    soonest = now - timedelta(seconds=found.interval)
    rows = DeviceLogin.objects.filter(pk=found.pk)
    if not rows.filter(Q(polled_at=None) | Q(polled_at__lte=soonest)).update(polled_at=now):
        rows.update(polled_at=now, interval=F("interval") + SLOWER_SECONDS)
        raise SlowDown(
            f"asked too soon; wait {found.interval + SLOWER_SECONDS} seconds between two questions from now on"
        )
    if found.decided_by is None:
        raise Pending("nobody has entered the code yet; ask again later")
    if not found.allowed:
        raise Denied("the login was refused in the portal")
    with transaction.atomic():
        if not rows.delete()[0]:  # another poll was first
            raise Expired("this login is unknown, used or too old; begin again with 'labapex login'")
        by = organisations.acting(found.decided_by, found.organisation or None)
        return accounts.new_token(by.principal, name=found.name, scopes=found.asked, days=found.days, by=by)
