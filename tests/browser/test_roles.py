"""Every page as each who may open it: drawn without a complaint, fit for the screen, and usable by everybody (axe-core)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser
from tests.browser.accessibility import violations
from tests.browser.conftest import Server, Visitor
from tests.browser.stage import Story
from tests.browser.test_screens import DARK, LIGHT, PHONE, fits, picture

from labapex_server.accounts import organisations
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Role, User

pytestmark = pytest.mark.browser
LOOKS = [("light", LIGHT), ("dark", DARK), ("phone", PHONE)]
looks = pytest.mark.parametrize(("look", "options"), LOOKS, ids=[look for look, _ in LOOKS])

PUBLIC = (
    "/login/",
    "/signup/",
    "/password/reset/",
    "/password/reset/done/",
    "/confirm-email/x/",
    "/transparency/",
    "/api/",
)
OWN = (
    "/jobs/", "/jobs/new/", "/offers/", "/workers/", "/billing/", "/alerts/", "/storage/", "/tokens/", "/device/", "/email/",
    "/password/change/", "/2fa/", "/2fa/webauthn/", "/sessions/", "/organisations/", "/logout/", "/transparency/",
)  # fmt: skip


def inspect(visitor: Visitor, paths: tuple[str, ...], name: str = "") -> None:
    """Open each, and tell all that is wrong with them at once."""
    wrong = []
    for path in paths:
        page = visitor.go(path)
        if not fits(page):
            wrong.append(f"{path}: sticks out to the side")
        wrong += [f"{path}: {each}" for each in violations(page)]
        if name:
            picture(page, f"{name}{path.rstrip('/').replace('/', '-')}")
    assert wrong == []
    assert visitor.complaints == []


def refused(visitor: Visitor, path: str, status: int) -> None:
    """Where the page is not for them; the browser itself complains of the status."""
    reply = visitor.page.goto(visitor.address + path)
    assert reply is not None
    assert reply.status == status
    visitor.complaints.clear()


@looks
def test_a_stranger_sees_what_is_public_and_is_sent_to_sign_in_elsewhere(
    look: str, options: dict[str, Any], browser: Browser, server: Server, people: Any
) -> None:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    stranger = Visitor(context, server.address)
    inspect(stranger, PUBLIC)
    stranger.go("/jobs/")
    assert "/login/?next=/jobs/" in stranger.page.url
    context.close()


@looks
def test_a_researcher_opens_every_page_of_theirs_and_another_none_of_them(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    def history() -> User:
        story.submitted().queued().running().trained(300)
        done = Story(owner=people[0], host=people[1], began=story.began - 900, name="chargpt", epochs=2)
        done.submitted().queued().running(worker="its-host").trained().challenged().opened(0, 17, 18).judged()
        history.done = done.job.pk  # type: ignore[attr-defined]
        return accounts.create_user("other", password="a long enough secret")

    other = books(history)
    done = history.done  # type: ignore[attr-defined]
    jobs = (f"/jobs/{story.job.pk}/", f"/jobs/{done}/", f"/jobs/{done}/verdict/")
    inspect(visit(**options), (*OWN, *jobs))
    stranger = visit(person=other, **options)
    for path in jobs:
        refused(stranger, path, 404)


@looks
def test_a_host_opens_every_page_of_theirs(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    books(lambda: story.submitted().queued().running().trained(300))
    host = visit(person=people[1], **options)
    inspect(host, OWN)
    host.go("/workers/").get_by_role("button", name="Enrol a machine").click()
    assert violations(host.page) == []
    refused(host, f"/jobs/{story.job.pk}/", 404)


@looks
def test_an_operator_adds_a_second_factor_before_any_other_page_opens(
    look: str, options: dict[str, Any], visit: Callable[..., Any], people: Any, books: Callable[..., Any]
) -> None:
    from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret

    def make() -> User:
        User.objects.filter(pk=people[0].pk).update(is_staff=True)
        return User.objects.get(pk=people[0].pk)

    operator = visit(person=books(make), **options)
    operator.go("/jobs/")
    assert operator.page.url.endswith("/2fa/")
    assert violations(operator.page) == []
    books(lambda: TOTP.activate(people[0], generate_totp_secret()))
    inspect(operator, OWN)


@looks
def test_members_open_what_their_role_is_for(
    look: str, options: dict[str, Any], visit: Callable[..., Any], people: Any, books: Callable[..., Any]
) -> None:
    def make() -> User:
        acme = organisations.establish(people[0], "acme-research")
        boss = organisations.acting(people[0], acme.pk)
        clerk = accounts.create_user("clerk", password="a long enough secret")
        for person, role in ((people[1], Role.MEMBER), (clerk, Role.BILLING)):
            organisations.join(person, organisations.invite(boss, role=role).rstrip("/").rpartition("/")[2])
        return clerk

    clerk = books(make)
    for person, role in ((people[0], "owner"), (people[1], "member"), (clerk, "billing")):
        visitor = visit(person=person, **options)
        page = visitor.go("/organisations/")
        page.get_by_title("For whom you act").click()
        assert violations(page) == []
        picture(page, f"organisations-switch-{role}-{look}")
        page.get_by_role("button", name="acme-research").click()
        paths = ("/billing/", "/tokens/", "/organisations/", "/organisations/acme-research/")
        if role == "billing":
            refused(visitor, "/jobs/", 403)
            assert violations(visitor.page) == []
        else:
            paths = (*paths, "/jobs/", "/jobs/new/", "/offers/", "/workers/")
        inspect(visitor, paths)
        if role == "owner":
            page.goto(visitor.address + "/organisations/acme-research/")
            page.get_by_role("button", name="Make an invitation").click()
            assert violations(page) == []
            link = page.locator("#invitation").inner_text()
            picture(page, f"organisation-{look}")
    guest = visit(person=books(lambda: accounts.create_user("guest", password="a long enough secret")), **options)
    page = guest.go(link.removeprefix(guest.address))
    assert violations(page) == []
    picture(page, f"invitation-{look}")
    page.get_by_role("button", name="Join acme-research").click()
    assert page.get_by_title("For whom you act").inner_text() == "acme-research"
