"""The cast: people with known rights. Whoever lies in a test is `cheat`."""

from __future__ import annotations

from pathlib import Path

import pytest

from labapex.protocol.spec import CREDIT
from labapex_server.accounts.models import User

FAST_HASHER = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """No test of the platform touches another's files."""


@pytest.fixture(autouse=True)
def _fast_passwords(settings: object) -> None:
    settings.PASSWORD_HASHERS = FAST_HASHER  # type: ignore[attr-defined]


def _person(name: str, credit: int = 0) -> User:
    from labapex_server.accounts import services as accounts
    from labapex_server.ledger import services as ledger

    user = accounts.create_user(name, password=f"{name} has a password")
    if credit:
        ledger.top_up(ledger.account_of(user), amount=credit, memo="test")
    return user


@pytest.fixture
def researcher(db: None) -> User:
    """Buys training; has 100 credits."""
    return _person("researcher", 100 * CREDIT)


@pytest.fixture
def other_researcher(db: None) -> User:
    """Must never see what is the researcher's."""
    return _person("other_researcher", 100 * CREDIT)


@pytest.fixture
def host(db: None) -> User:
    """Offers an honest host."""
    return _person("host")


@pytest.fixture
def cheat(db: None) -> User:
    """Offers a host and wants to be paid for nothing."""
    return _person("cheat")


@pytest.fixture
def operator(db: None) -> User:
    """Runs the platform; has the second factor that this takes."""
    from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
    from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret

    user = _person("operator")
    user.is_staff = user.is_superuser = True
    user.save()
    TOTP.activate(user, generate_totp_secret())
    RecoveryCodes.activate(user)
    return user
