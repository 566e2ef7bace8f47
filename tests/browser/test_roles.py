"""Every page as each who may open it: drawn without a complaint, fit for the screen, and usable by everybody (axe-core)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from tests.browser.accessibility import violations
from tests.browser.conftest import Server, Visitor
from tests.browser.stage import Story
from tests.browser.test_disputes import found_false
from tests.browser.test_screens import DARK, LIGHT, PHONE, fits, picture

from labapex_server.accounts import organisations
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Role, User
from labapex_server.disputes import services as disputes
from labapex_server.jobs.models import Job
from labapex_server.workers.models import Worker

pytestmark = pytest.mark.browser
THING = re.compile(r"/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|/\d+")  # a number, in an address
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
    "/password/change/", "/2fa/", "/2fa/webauthn/", "/sessions/", "/organisations/", "/logout/", "/transparency/", "/disputes/",
    "/compare/",
)  # fmt: skip
DEEDS = (  # of an operator: in which book, to what, and with how many credits
    ("workers/worker", "chargpt-noop-host", "ban", ""),
    ("jobs/job", "chargpt", "refund", "0.1"),
    ("accounts/user", "host", "issue", "2"),
)


def inspect(visitor: Visitor, paths: tuple[str, ...], name: str = "") -> None:
    """Open each, and tell all that is wrong with them at once."""
    wrong = []
    for path in paths:
        page = visitor.go(path)
        if not fits(page):
            wrong.append(f"{path}: sticks out to the side")
        wrong += [f"{path}: {each}" for each in violations(page)]
        wrong += [f"{path}: {each}" for each in visitor.complaints]
        visitor.complaints.clear()
        if name:
            picture(page, f"{name}{THING.sub('', path.rstrip('/')).replace('/', '-')}")
    assert not wrong, "\n".join(wrong)


def contested(story: Story, people: Any) -> None:
    """Two judged runs, one of either verdict; the client has contested hers, and it runs again."""
    for name, failing in (("chargpt", None), ("chargpt-noop", "replay")):
        each = Story(owner=people[0], host=people[1], began=story.began - 900, name=name, epochs=2)
        each.submitted().queued().running(worker=f"{name}-host").trained().challenged().opened(0, 17, 18)
        each.judged(failing=failing)
    Job.objects.update(iteration_seconds=0.9)
    disputes.contest(people[0], Job.objects.get(name="chargpt").pk, "The loss on my own data is that of its beginning.")


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
    compared = f"/compare/?job={story.job.pk}&job={done}"
    jobs = (f"/jobs/{story.job.pk}/", f"/jobs/{done}/", f"/jobs/{done}/verdict/", f"/jobs/{done}/dispute/", compared)
    researcher = visit(**options)
    inspect(researcher, (*OWN, *jobs))
    page = researcher.go(compared)
    expect(page.locator("#compare")).to_have_attribute("data-drawn", "300 226")
    assert violations(page) == []
    picture(page, f"roles-compare-{look}")
    stranger = visit(person=other, **options)
    for path in jobs:
        refused(stranger, path, 404)


@looks
def test_both_sides_of_a_dispute_follow_it_to_its_ruling_and_nobody_else_does(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    def history() -> User:
        contested(story, people)
        return accounts.create_user("other", password="a long enough secret")

    other = books(history)
    dispute = books(lambda: disputes.of(people[0]).get())
    ruling, job = f"/disputes/{dispute.pk}/", f"/jobs/{dispute.job_id}/"
    client, host, stranger = visit(**options), visit(person=people[1], **options), visit(person=other, **options)
    for visitor in (client, host):
        inspect(visitor, ("/disputes/", ruling))
    books(found_false)
    inspect(client, ("/disputes/", ruling, f"{job}dispute/", f"{job}verdict/", job), f"client-{look}")
    expect(client.go(ruling).get_by_role("heading", name="Ruling")).to_be_visible()
    inspect(host, ("/disputes/", ruling), f"host-{look}")
    inspect(stranger, ("/disputes/",))
    refused(stranger, ruling, 404)


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
def test_an_operator_reads_every_book_of_the_office_and_acts_with_a_reason(
    look: str, options: dict[str, Any], visit: Callable[..., Any], story: Story, people: Any, books: Callable[..., Any]
) -> None:
    from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
    from allauth.mfa.totp.internal.auth import TOTP, generate_totp_secret

    def history() -> User:
        contested(story, people)
        operator = User.objects.create_user("operator", is_staff=True)
        TOTP.activate(operator, generate_totp_secret())
        RecoveryCodes.activate(operator)
        return operator

    operator = visit(person=books(history), **options)
    inspect(operator, ("/admin/", "/admin/workers/worker/fraud/"), look)
    for book, thing, action, credits in DEEDS:
        page = operator.go(f"/admin/{book}/")
        page.get_by_role("row").filter(has=page.get_by_role("link", name=thing, exact=True)).get_by_role(
            "checkbox"
        ).check()
        page.get_by_label("Action:").select_option(action)
        page.get_by_label("Reason:").fill("as we agreed by telephone")
        if credits:
            page.get_by_label("Credits:").fill(credits)
        page.get_by_role("button", name="Run").or_(page.get_by_role("button", name="Go")).first.click()
        expect(page.locator(".messagelist .success")).to_be_visible()
        assert violations(page) == []
        picture(page, f"office-after-{action}-{look}")
    books(found_false)
    inspect(operator, tuple(books(office_pages)), look)
    refused(visit(**options), "/admin/", 404)


def office_pages() -> list[str]:
    """Each book, and the page of its newest row with what was done to it."""
    from labapex_server.staff.site import office

    paths = []
    for model in office._registry:
        book = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        newest = model._default_manager.order_by("pk").last()
        assert newest is not None, book
        paths += [book, f"{book}{newest.pk}/change/"]
    return [*paths, f"/admin/workers/worker/{Worker.objects.get(banned=True).pk}/history/"]


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
        paths: tuple[str, ...] = ("/billing/", "/tokens/", "/organisations/", "/organisations/acme-research/")
        if role == "billing":
            refused(visitor, "/jobs/", 403)
            assert violations(visitor.page) == []
        else:
            paths = (
                *paths,
                "/jobs/",
                "/jobs/new/",
                "/offers/",
                "/workers/",
                "/disputes/",
                "/compare/",
                "/storage/",
                "/alerts/",
            )
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
