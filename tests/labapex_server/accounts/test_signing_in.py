"""Who may sign in, by what, and what a stolen password, a found browser or a read database is worth."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value, yield_hotp_counters_from_time
from django.core import mail
from django.core.cache import cache
from django.test import Client
from tests.labapex_server.signing_in import signed_in

from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Token, User

pytestmark = pytest.mark.django_db
NEW = {"username": "newcomer", "email": "new@example.org", "password1": "correct horse", "password2": "correct horse"}


@pytest.fixture(autouse=True)
def _nobody_tried_before() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def mail_server(settings: Any) -> None:
    """As `LABAPEX_MAIL_URL` sets it; pytest-django keeps what is sent."""
    settings.ACCOUNT_SIGNUP_FIELDS = ["username*", "email*", "password1*", "password2*"]
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    settings.MFA_ALLOW_UNVERIFIED_EMAIL = False


def enter(name: str, password: str, client: Client | None = None) -> tuple[Client, str]:
    """A browser after the sign-in page, and where that page sent it; "" where it came back."""
    browser = client or Client()
    reply = browser.post("/login/", {"login": name, "password": password})
    return browser, reply.headers.get("Location", "")


def is_in(browser: Client) -> bool:
    return browser.get("/jobs/").status_code == 200


def code_of(user: User) -> str:
    """What the authenticator app shows now."""
    secret = Authenticator.objects.get(user=user, type="totp").wrap()
    return code_for(accounts_secret(secret))


def accounts_secret(authenticator: Any) -> str:
    from allauth.mfa.utils import decrypt

    return str(decrypt(authenticator.instance.data["secret"]))


def code_for(secret: str) -> str:
    return str(format_hotp_value(hotp_value(secret, next(iter(yield_hotp_counters_from_time())))))


def with_an_app(user: User) -> Client:
    """A browser of this person, who has just added an authenticator app."""
    browser = signed_in(user)
    page = browser.get("/2fa/totp/activate/").content.decode()
    secret = re.search(r'id="authenticator_secret" value="([A-Z2-7]+)"', page)
    assert secret is not None
    assert browser.post("/2fa/totp/activate/", {"code": code_for(secret[1])}).status_code == 302
    cache.clear()  # a code is good once
    return browser


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_without_a_mail_server_nobody_is_asked_to_confirm_an_address(client: Client) -> None:
    assert client.post("/signup/", NEW | {"email": ""})["Location"] == "/"
    assert is_in(client)
    assert mail.outbox == []


def test_people_sign_in_by_name_or_by_address(client: Client) -> None:
    client.post("/signup/", NEW)
    for name in ("newcomer", "new@example.org", "NEW@example.org"):
        assert is_in(enter(name, "correct horse")[0])


def test_no_name_looks_like_an_address(client: Client) -> None:
    reply = client.post("/signup/", NEW | {"username": "victim@example.org"})
    assert "Use letters, digits" in reply.content.decode()
    assert not User.objects.exists()


def test_with_a_mail_server_an_address_is_confirmed_before_anything_opens(client: Client, mail_server: None) -> None:
    assert "id_email_error" in client.post("/signup/", NEW | {"email": ""}).content.decode()
    assert client.post("/signup/", NEW)["Location"] == "/confirm-email/"
    assert not is_in(client)
    assert not is_in(enter("newcomer", "correct horse")[0])
    assert mail.outbox[0].to == ["new@example.org"]
    link = re.search(r"http://testserver(/confirm-email/\S+)", mail.outbox[0].body)
    assert link is not None
    assert (
        "Confirm" in client.get(link[1]).content.decode()
    )  # a scanner of mails that follows the link confirms nothing
    assert not EmailAddress.objects.get().verified
    client.post(link[1])
    assert is_in(enter("newcomer", "correct horse")[0])


def test_an_account_that_the_operator_made_has_no_address_to_confirm(researcher: User, mail_server: None) -> None:
    assert is_in(enter("researcher", "researcher has a password")[0])


def test_a_forgotten_password_is_set_anew_by_mail_and_ends_no_second_factor(client: Client) -> None:
    client.post("/signup/", NEW)
    client.post("/logout/")
    client.post("/password/reset/", {"email": "new@example.org"})
    link = re.search(r"http://testserver(/password/reset/key/\S+)", mail.outbox[-1].body)
    assert link is not None
    form = client.get(link[1], follow=True)
    client.post(form.request["PATH_INFO"], {"password1": "battery staple", "password2": "battery staple"})
    assert not is_in(enter("newcomer", "correct horse")[0])
    assert is_in(enter("newcomer", "battery staple")[0])


def test_a_reset_that_nobody_can_get_tells_the_asker_nothing(client: Client) -> None:
    client.post("/signup/", NEW)
    client.post("/logout/")
    known, unknown = (client.post("/password/reset/", {"email": at}) for at in ("new@example.org", "no@example.org"))
    assert known["Location"] == unknown["Location"] == "/password/reset/done/"


# -- a second factor ---------------------------------------------------------------------------------------------------


def test_a_password_alone_does_not_open_an_account_with_an_authenticator_app(researcher: User) -> None:
    with_an_app(researcher)
    browser, where = enter("researcher", "researcher has a password")
    assert where.startswith("/2fa/authenticate/")
    assert not is_in(browser)
    assert browser.post("/2fa/authenticate/", {"code": "000000"}).status_code == 200
    assert not is_in(browser)
    assert browser.post("/2fa/authenticate/", {"code": code_of(researcher)})["Location"] == "/"
    assert is_in(browser)


def test_a_program_gets_no_token_for_the_password_of_such_an_account(researcher: User) -> None:
    with_an_app(researcher)
    body = {"username": "researcher", "password": "researcher has a password"}
    reply = Client().post("/api/v1/login/", body, content_type="application/json")
    assert (reply.status_code, reply.json()["code"]) == (403, "second-factor")
    assert "labapex login" in reply.json()["detail"]
    assert not Token.objects.exists()


def test_a_recovery_code_opens_once(researcher: User) -> None:
    codes = with_an_app(researcher).get("/2fa/recovery-codes/download/").content.decode().split()
    assert len(codes) == 10
    for opens in (True, False):
        browser, _ = enter("researcher", "researcher has a password")
        browser.post("/2fa/authenticate/", {"code": codes[0]})
        assert is_in(browser) == opens


def test_the_database_does_not_tell_the_secret_of_an_app(researcher: User) -> None:
    browser = signed_in(researcher)
    page = browser.get("/2fa/totp/activate/").content.decode()
    secret = re.search(r'id="authenticator_secret" value="([A-Z2-7]+)"', page)
    assert secret is not None
    browser.post("/2fa/totp/activate/", {"code": code_for(secret[1])})
    kept = [str(each.data) for each in Authenticator.objects.filter(user=researcher)]
    assert len(kept) == 2  # the app and the recovery codes
    assert not any(secret[1] in data for data in kept)


def test_an_operator_without_a_second_factor_sees_only_where_to_add_one(host: User) -> None:
    User.objects.filter(pk=host.pk).update(is_staff=True)
    host.refresh_from_db()
    browser = signed_in(host)
    for path in ("/jobs/", "/billing/", "/tokens/", "/workers/"):
        assert browser.get(path)["Location"] == "/2fa/"
    assert "needs a second factor" in browser.get("/2fa/").content.decode()
    cache.clear()
    assert is_in(with_an_app(host))


# -- a browser that was left open --------------------------------------------------------------------------------------


def test_a_new_token_asks_once_more_who_it_is_and_is_then_made(researcher: User) -> None:
    browser = Client()
    browser.force_login(researcher)
    asked = browser.post("/tokens/", {"name": "laptop", "scopes": ["jobs:read"], "days": "30"})
    assert asked["Location"] == "/reauthenticate/?next=%2Ftokens%2F"
    assert browser.post(asked["Location"], {"password": "guess"}).status_code == 200
    assert not Token.objects.exists()
    made = browser.post(asked["Location"], {"password": "researcher has a password"})
    assert re.search(r"apex_\w{46}", made.content.decode())
    assert "no-store" in made["Cache-Control"]
    assert Token.objects.get().name == "laptop"


@pytest.mark.parametrize("path", ["/2fa/totp/deactivate/", "/2fa/recovery-codes/generate/", "/2fa/webauthn/add/"])
def test_a_second_factor_is_not_changed_by_who_found_the_browser_open(researcher: User, path: str) -> None:
    with_an_app(researcher)
    browser = Client()
    browser.force_login(researcher)
    for reply in (browser.get(path), browser.post(path)):
        assert reply["Location"].startswith("/reauthenticate/")
    assert accounts.has_second_factor(researcher)


def test_the_other_browsers_are_signed_out_from_this_one(researcher: User) -> None:
    left, here = (enter("researcher", "researcher has a password")[0] for _ in range(2))
    assert "Sign out elsewhere" in here.get("/sessions/").content.decode()
    here.post("/sessions/")
    assert is_in(here)
    assert not is_in(left)


def test_a_new_password_signs_the_other_browsers_out(researcher: User) -> None:
    left, here = (enter("researcher", "researcher has a password")[0] for _ in range(2))
    fields = {"oldpassword": "researcher has a password", "password1": "battery staple", "password2": "battery staple"}
    here.post("/password/change/", fields)
    assert is_in(here)
    assert not is_in(left)
