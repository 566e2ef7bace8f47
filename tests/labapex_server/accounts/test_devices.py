"""The flow of RFC 8628, as a program and a person go through it."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from labapex.protocol.api import Scope, TokenTerms
from labapex_server.accounts import devices
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import DeviceLogin, Token, User
from labapex_server.lib import clock

pytestmark = pytest.mark.django_db
TERMS = TokenTerms(name="laptop", scopes=(Scope.JOBS_READ,), days=7)


class Hands:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = datetime.fromisoformat("2026-11-20T12:00:00+00:00")

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    found = Hands()
    monkeypatch.setattr(clock, "now", lambda: found.now)
    return found


def allow(user: User, code: str) -> None:
    request = devices.waiting(code)
    assert request is not None
    assert devices.decide(request, user, allow=True)


def test_a_login_that_was_allowed_gives_one_token_with_what_was_asked(researcher: User, hands: Hands) -> None:
    device, code = devices.begin(TERMS, address="192.0.2.7")
    with pytest.raises(devices.Pending):
        devices.poll(device)
    allow(researcher, code)
    hands.pass_by(5)
    secret, token = devices.poll(device)
    assert accounts.authenticate_token(secret).user == researcher
    assert (token.name, token.granted) == ("laptop", (Scope.JOBS_READ,))
    assert token.expires_at == hands.now + timedelta(days=7)
    hands.pass_by(5)
    with pytest.raises(devices.Expired):
        devices.poll(device)
    assert Token.objects.count() == 1


def test_whoever_asks_too_soon_has_to_wait_longer_each_time(researcher: User, hands: Hands) -> None:
    device, code = devices.begin(TERMS, address="")
    with pytest.raises(devices.Pending):
        devices.poll(device)
    allow(researcher, code)
    hands.pass_by(4)
    with pytest.raises(devices.SlowDown, match="wait 10 seconds"):
        devices.poll(device)
    hands.pass_by(9)
    with pytest.raises(devices.SlowDown, match="wait 15 seconds"):
        devices.poll(device)
    hands.pass_by(15)
    assert devices.poll(device)


def test_a_refused_login_gives_nothing_and_nobody_decides_twice(researcher: User, cheat: User, hands: Hands) -> None:
    device, code = devices.begin(TERMS, address="")
    request = devices.waiting(code)
    assert request is not None
    assert devices.decide(request, researcher, allow=False)
    assert not devices.decide(request, cheat, allow=True)
    assert devices.waiting(code) is None
    with pytest.raises(devices.Denied):
        devices.poll(device)
    assert not Token.objects.exists()


def test_a_code_that_is_too_old_is_nothing_to_anybody(researcher: User, hands: Hands) -> None:
    device, code = devices.begin(TERMS, address="")
    request = devices.waiting(code)
    assert request is not None
    hands.pass_by(devices.LIFE_SECONDS)
    assert devices.waiting(code) is None
    assert not devices.decide(request, researcher, allow=True)
    with pytest.raises(devices.Expired):
        devices.poll(device)
    hands.pass_by(1)
    devices.begin(TERMS, address="")
    assert DeviceLogin.objects.count() == 1  # the old one is forgotten


def test_people_may_write_the_code_as_they_like_and_neither_code_is_kept(hands: Hands) -> None:
    device, code = devices.begin(TERMS, address="")
    for written in (code, code.lower(), code.replace("-", " "), f"  {code.replace('-', '')} "):
        assert devices.waiting(written) is not None
    assert devices.waiting("") is None
    assert devices.waiting("WWWW-WWWW" if code != "WWWW-WWWW" else "XXXX-XXXX") is None
    kept = str(DeviceLogin.objects.values().get())
    assert device not in kept
    assert code.replace("-", "") not in kept


def test_an_unknown_device_code_is_refused() -> None:
    with pytest.raises(devices.Expired):
        devices.poll("invented")
