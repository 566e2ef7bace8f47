"""A new client, from the sign-up page to a token that works, with an authenticator app and a passkey on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from tests.browser.accessibility import violations
from tests.browser.conftest import Server, Visitor
from tests.browser.test_screens import DARK, LIGHT, PHONE, fits, picture
from tests.labapex_server.accounts.test_signing_in import code_for

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("look", "options"), [("light", LIGHT), ("dark", DARK), ("phone", PHONE)])
def test_a_newcomer_signs_up_adds_factors_and_makes_a_token(
    look: str, options: dict[str, Any], browser: Browser, server: Server, books: Callable[..., Any]
) -> None:
    context = browser.new_context(
        viewport=options.get("viewport", {"width": 1280, "height": 900}), color_scheme=options["color_scheme"]
    )
    visitor = Visitor(
        context, server.address.replace("127.0.0.1", "localhost")
    )  # browsers give passkeys to names alone
    keys = context.new_cdp_session(visitor.page)
    keys.send("WebAuthn.enable")
    keys.send(
        "WebAuthn.addVirtualAuthenticator",
        {
            "options": {
                "protocol": "ctap2",
                "transport": "internal",
                "hasResidentKey": True,
                "hasUserVerification": True,
                "isUserVerified": True,
                "automaticPresenceSimulation": True,
            }
        },
    )

    def drawn(name: str) -> None:
        picture(visitor.page, f"account-{name}-{look}")
        assert fits(visitor.page), name
        assert violations(visitor.page) == [], name

    page = visitor.go("/signup/")
    drawn("sign-up")
    page.get_by_label("Username").fill("newcomer")
    page.get_by_label("Password", exact=True).fill("correct horse battery")
    page.get_by_label("Password (again)").fill("correct horse batery")
    page.get_by_role("button", name="Make the account").click()
    expect(page.locator(".errors")).to_contain_text("same password each time")
    drawn("sign-up-wrong")
    page.get_by_label("Password", exact=True).fill("correct horse battery")
    page.get_by_label("Password (again)").fill("correct horse battery")
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()

    page.get_by_role("link", name="Account").click()
    page.get_by_role("link", name="Second factor").click()
    drawn("factors-none")
    page.get_by_role("link", name="Activate").click()
    expect(page.get_by_role("heading", name="Confirm Access")).to_be_visible()
    drawn("reauthenticate")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Confirm").click()
    drawn("app")
    page.get_by_label("Authenticator code").fill(code_for(page.locator("#authenticator_secret").input_value()))
    page.get_by_role("button", name="Activate").click()
    expect(page.locator("#recovery_codes")).to_be_visible()
    drawn("recovery-codes")
    code = page.locator("#recovery_codes").input_value().split()[0]

    page.get_by_role("link", name="Second factor").click()
    page.get_by_role("link", name="Add").click()
    drawn("key-add")
    page.get_by_label("Passwordless").check()
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_text("You have added 1 security key")).to_be_visible()
    drawn("factors")
    page.get_by_role("link", name="Manage").click()
    expect(page.get_by_text("Passkey", exact=True)).to_be_visible()
    drawn("keys")

    for name, label in (("email", "E-mail"), ("password", "Password"), ("sessions", "Sessions")):
        page.get_by_role("navigation", name="Account").get_by_role("link", name=label).click()
        drawn(name)
    page.get_by_role("link", name="Tokens").click()
    page.get_by_label("What is it for?").fill("laptop")
    page.get_by_role("button", name="Make a token").click()
    expect(page.locator("#secret")).to_contain_text("apex_")
    drawn("tokens")

    page.get_by_role("button", name="Sign out").click()
    drawn("sign-in")
    page.get_by_label("User name or e-mail address").fill("newcomer")
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign in").click()
    drawn("second-factor")
    page.get_by_label("Code").fill(code)
    page.get_by_role("button", name="Sign In").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()

    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="With a passkey").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    assert visitor.complaints == []
    context.close()
