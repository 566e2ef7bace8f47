"""An organisation acts by its members, each as far as their role goes, and never without an owner."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core import mail
from tests.labapex_server.scenes import request
from tests.labapex_server.signing_in import signed_in

from labapex.protocol.api import Scope
from labapex.protocol.spec import CREDIT
from labapex_server.accounts import organisations
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Membership, Role, Token, User
from labapex_server.accounts.organisations import Acting, NoMember
from labapex_server.accounts.services import TokenRefused
from labapex_server.jobs import services as jobs
from labapex_server.ledger import services as ledger
from labapex_server.lib.errors import Conflict, Missing, Refused

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(researcher: User) -> Acting:
    """The owner of acme, acting for it."""
    acme = organisations.establish(researcher, "acme")
    ledger.top_up(ledger.account_of(acme), amount=5 * CREDIT, memo="test")
    return organisations.acting(researcher, acme.pk)


def secret_of(link: str) -> str:
    return link.rstrip("/").rpartition("/")[2]


def joined(boss: Acting, person: User, role: str = Role.MEMBER) -> Acting:
    organisations.join(person, secret_of(organisations.invite(boss, role=role)))
    return organisations.acting(person, boss.principal.pk)


def test_a_job_of_the_organisation_is_held_from_its_balance_and_from_nobodys(boss: Acting, host: User) -> None:
    member = joined(boss, host)
    job = jobs.submit(member.principal, request=request(member.principal, budget="4"))
    assert job.owner == boss.principal
    with pytest.raises(Exception, match="credit"):
        jobs.submit(member.principal, request=request(member.principal, budget="90"))  # its owner has a hundred


@pytest.mark.parametrize("name", ["", "a b", "@acme", "x" * 61, "-x", "ac/me", "ACME"])
def test_a_name_that_cannot_be_had_is_refused(boss: Acting, name: str) -> None:
    with pytest.raises(Refused):
        organisations.establish(boss.person, name)
    assert User.objects.filter(is_organisation=True).count() == 1


def test_nobody_signs_in_as_an_organisation(boss: Acting, client: Any) -> None:
    for password in ("", "!", boss.principal.password):
        client.post("/login/", {"login": "acme", "password": password})
        assert client.get("/jobs/").status_code == 302


def test_an_invitation_makes_one_member_once(boss: Acting, host: User, other_researcher: User) -> None:
    secret = secret_of(organisations.invite(boss, role=Role.MEMBER))
    organisations.join(host, secret)
    with pytest.raises(Missing):
        organisations.join(other_researcher, secret)
    with pytest.raises(NoMember):
        organisations.acting(other_researcher, "acme")


def test_an_invitation_that_a_member_opens_stays_good_for_whom_it_is_meant(boss: Acting, host: User) -> None:
    secret = secret_of(organisations.invite(boss, role=Role.BILLING))
    with pytest.raises(Conflict):
        organisations.join(boss.person, secret)
    assert organisations.join(host, secret).role == Role.BILLING


def test_an_invitation_is_sent_where_there_is_an_address_and_ends_when_it_is_withdrawn(
    boss: Acting, host: User
) -> None:
    link = organisations.invite(boss, role=Role.MEMBER, email="friend@example.org")
    assert mail.outbox[0].to == ["friend@example.org"]
    assert link in mail.outbox[0].body
    organisations.withdraw(boss, boss.principal.invitations.get().pk)
    with pytest.raises(Missing):
        organisations.join(host, secret_of(link))


def test_a_token_of_a_member_does_what_their_role_allows_and_ends_with_it(boss: Acting, host: User) -> None:
    member = joined(boss, host)
    secret = accounts.issue_token(member.principal, name="ci", by=member)
    token = accounts.authenticate_token(secret)
    assert token.user == boss.principal
    assert set(token.granted) == set(Scope) - {Scope.TOKENS_WRITE}
    organisations.appoint(boss, host.pk, Role.BILLING)
    assert accounts.authenticate_token(secret).granted == (Scope.BILLING_READ,)
    organisations.dismiss(boss, host.pk)
    with pytest.raises(TokenRefused, match="revoked"):
        accounts.authenticate_token(secret)
    Token.objects.update(revoked_at=None)  # as if it had been made in that moment
    with pytest.raises(TokenRefused, match="not a member"):
        accounts.authenticate_token(secret)


def test_members_see_their_own_tokens_and_owners_all(boss: Acting, host: User) -> None:
    member = joined(boss, host)
    accounts.issue_token(member.principal, name="theirs", by=member)
    accounts.issue_token(boss.principal, name="ours", by=boss)
    accounts.issue_token(host, name="private")
    assert [token.name for token in accounts.live_tokens(member)] == ["theirs"]
    assert {token.name for token in accounts.live_tokens(boss)} == {"theirs", "ours"}
    ours = Token.objects.get(name="ours")
    assert not accounts.revoke_token(member, token_id=ours.pk)
    assert accounts.revoke_token(boss, token_id=Token.objects.get(name="theirs").pk)


def test_who_does_not_govern_changes_nothing(boss: Acting, host: User, other_researcher: User) -> None:
    member = joined(boss, host)
    for attempt in (
        lambda: organisations.invite(member, role=Role.OWNER),
        lambda: organisations.appoint(member, host.pk, Role.OWNER),
        lambda: organisations.dismiss(member, boss.person.pk),
        lambda: organisations.withdraw(member, 1),
    ):
        with pytest.raises(NoMember):
            attempt()
    assert Membership.objects.get(person=host).role == Role.MEMBER


def test_an_organisation_keeps_an_owner(boss: Acting, host: User) -> None:
    with pytest.raises(Conflict, match="keeps one owner"):
        organisations.dismiss(boss, boss.person.pk)
    with pytest.raises(Conflict, match="keeps one owner"):
        organisations.appoint(boss, boss.person.pk, Role.MEMBER)
    other = joined(boss, host, Role.OWNER)
    organisations.dismiss(boss, boss.person.pk)
    assert [each.person for each in other.principal.members.all()] == [host]


def test_leaving_is_everybodys_own_choice(boss: Acting, host: User) -> None:
    member = joined(boss, host)
    organisations.dismiss(member, host.pk)
    with pytest.raises(NoMember):
        organisations.acting(host, "acme")


def test_a_program_is_logged_in_for_an_organisation_by_a_member_alone(
    boss: Acting, host: User, other_researcher: User, client: Any
) -> None:
    from labapex_server.accounts.models import DeviceLogin

    asked = client.post("/api/v1/login/device/", {"organisation": "acme"}, content_type="application/json").json()
    poll = {"device_code": asked["device_code"]}
    stranger = signed_in(other_researcher)
    page = stranger.get(f"/device/?code={asked['user_code']}").content.decode()
    assert re.search("to act for the organisation\\s+<strong>acme", page)
    assert stranger.post("/device/", {"code": asked["user_code"], "decision": "allow"}).status_code == 403
    signed_in(boss.person).post("/device/", {"code": asked["user_code"], "decision": "allow"})
    DeviceLogin.objects.update(polled_at=None)
    new = client.post("/api/v1/login/device/token/", poll, content_type="application/json").json()
    assert (new["username"], new["organisation"]) == ("researcher", "acme")
    me = client.get("/api/v1/me/", headers={"Authorization": f"Bearer {new['token']}"}).json()
    assert (me["username"], me["organisation"], me["available"]) == ("researcher", "acme", 5 * CREDIT)


def test_a_password_gives_no_token_of_an_organisation_of_others(boss: Acting, host: User, client: Any) -> None:
    body = {"username": "host", "password": "host has a password", "organisation": "acme"}
    reply = client.post("/api/v1/login/", body, content_type="application/json")
    assert (reply.status_code, reply.json()["code"]) == (403, "no-member")
