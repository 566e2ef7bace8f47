"""A person's browser, by the pages themselves."""

from __future__ import annotations

from django.test import Client

from labapex_server.accounts.models import User


def signed_in(user: User, client: Client | None = None) -> Client:
    """Who has just shown once more that it is them, as making a token asks for. See `conftest` for the passwords."""
    browser = client or Client()
    browser.force_login(user)
    reply = browser.post("/reauthenticate/", {"password": f"{user.username} has a password"})
    assert reply.status_code == 302, reply.content
    return browser
