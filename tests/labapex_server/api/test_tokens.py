"""What a token may do, and how it comes and goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from tests.labapex_server.api.test_rest import Api, problem
from tests.labapex_server.scenes import request, submitted
from tests.labapex_server.signing_in import signed_in

from labapex.protocol.api import DeviceCode, Me, NewToken, Scope, TokenPage
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Token, User
from labapex_server.jobs.models import Job

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_throttle_left() -> None:
    cache.clear()


def api(user: User, *scopes: Scope, name: str = "ci") -> Api:
    return Api(None, f"Bearer {accounts.issue_token(user, name=name, scopes=scopes)}")


def test_a_token_does_what_its_scopes_say_and_nothing_else(researcher: User) -> None:
    job, body = submitted(researcher), request(researcher).model_dump_json()
    calls: dict[Scope, list[Any]] = {
        Scope.JOBS_READ: [lambda a: a.get("jobs/"), lambda a: a.get(f"jobs/{job.pk}/")],
        Scope.JOBS_WRITE: [lambda a: a.post("jobs/", body), lambda a: a.post(f"jobs/{job.pk}/stop/")],
        Scope.WORKERS_WRITE: [lambda a: a.post("enrolments/")],
        Scope.BILLING_READ: [lambda a: a.get(f"jobs/{job.pk}/receipt/")],
        Scope.TOKENS_WRITE: [lambda a: a.get("tokens/")],
    }
    assert set(calls) == set(Scope)
    for granted in Scope:
        caller = api(researcher, granted)
        for needed, each in calls.items():
            for call in each:
                if needed is not granted:
                    detail = problem(call(caller), 403, "missing-scope")
                    assert needed.value in detail
                    assert "'ci'" in detail
    for granted, each in calls.items():
        for call in each:
            assert call(api(researcher, granted)).status_code in (200, 201)
    assert Job.objects.count() == 2


def test_a_balance_is_told_to_those_alone_who_may_see_it(researcher: User) -> None:
    seen = Me.model_validate_json(api(researcher, Scope.BILLING_READ).get("me/").content)
    assert seen.available == 100_000_000
    unseen = Me.model_validate_json(api(researcher, Scope.JOBS_READ).get("me/").content)
    assert (unseen.username, unseen.available, unseen.held) == ("researcher", None, None)
    assert unseen.token.scopes == (Scope.JOBS_READ,)


def test_tokens_are_listed_without_their_secrets_and_revoked(researcher: User, other_researcher: User) -> None:
    other = accounts.issue_token(other_researcher, name="theirs")
    victim = accounts.issue_token(researcher, name="leaked")
    caller = api(researcher, Scope.TOKENS_WRITE, name="admin")
    reply = caller.get("tokens/")
    assert victim not in reply.content.decode()
    page = TokenPage.model_validate_json(reply.content)
    assert [token.name for token in page.results] == ["admin", "leaked"]
    gone = next(token for token in page.results if token.name == "leaked")
    assert caller.delete(f"tokens/{gone.id}/").status_code == 204
    problem(caller.delete(f"tokens/{gone.id}/"), 404, "not-found")
    assert "'leaked'" in problem(Api(None, f"Bearer {victim}").get("me/"), 401, "not-logged-in")
    assert [token.name for token in TokenPage.model_validate_json(caller.get("tokens/").content).results] == ["admin"]
    theirs = Token.objects.get(user=other_researcher)
    problem(caller.delete(f"tokens/{theirs.pk}/"), 404, "not-found")
    assert Api(None, f"Bearer {other}").get("me/").status_code == 200


def test_any_token_may_end_itself(researcher: User) -> None:
    caller = api(researcher, Scope.JOBS_READ)
    assert caller.delete("tokens/current/").status_code == 204
    assert "revoked" in problem(caller.get("jobs/"), 401, "not-logged-in")


def test_a_password_login_gives_what_it_asks_for(researcher: User) -> None:
    body = {"username": "researcher", "password": "researcher has a password", "name": "x", "scopes": ["jobs:read"]}
    new = NewToken.model_validate_json(Api(None).post("login/", json.dumps(body)).content)
    assert (new.username, new.scopes) == ("researcher", (Scope.JOBS_READ,))
    problem(Api(None).post("login/", json.dumps(body | {"scopes": ["root"]})), 400, "invalid")
    problem(Api(None).post("login/", json.dumps(body | {"scopes": []})), 400, "invalid")
    problem(Api(None).post("login/", json.dumps(body | {"days": 366})), 400, "invalid")


def test_a_program_is_logged_in_by_its_persons_word_in_the_portal(researcher: User) -> None:
    asked = json.dumps({"name": "laptop of ada", "scopes": ["jobs:read"]})
    code = DeviceCode.model_validate_json(Api(None).post("login/device/", asked).content)
    poll = json.dumps({"device_code": code.device_code})
    problem(Api(None).post("login/device/token/", poll), 400, "authorization-pending")
    problem(Api(None).post("login/device/token/", poll), 400, "slow-down")

    browser = Client()
    page = f"/device/?code={code.user_code}"
    assert browser.get(page)["Location"].startswith("/login/?next=/device/")
    browser.force_login(researcher)
    shown = browser.get(page).content.decode()
    for word in ("laptop of ada", "127.0.0.1", "see your jobs", "researcher", code.user_code):
        assert word in shown
    assert "submit jobs" not in shown
    assert not Token.objects.exists()  # to look decides nothing
    allowed = browser.post("/device/", {"code": code.user_code, "decision": "allow"})
    assert allowed["Location"].startswith("/reauthenticate/")  # whoever found the browser open is not its person
    problem(Api(None).post("login/device/token/", poll), 400, "slow-down")
    confirmed = browser.post(allowed["Location"], {"password": "researcher has a password"})
    assert confirmed["Location"] == "/tokens/"  # the answer that waited was given
    from labapex_server.accounts.models import DeviceLogin

    DeviceLogin.objects.update(polled_at=None)
    new = NewToken.model_validate_json(Api(None).post("login/device/token/", poll).content)
    assert Api(None, f"Bearer {new.token}").get("jobs/").status_code == 200
    problem(Api(None).post("login/device/token/", poll), 400, "expired-token")
    assert browser.get(page).status_code == 422


def test_a_refused_device_login_and_an_unknown_code_give_nothing(researcher: User) -> None:
    code = DeviceCode.model_validate_json(Api(None).post("login/device/", "{}").content)
    browser = signed_in(researcher)
    assert browser.post("/device/", {"code": "BBBB-BBBB", "decision": "allow"}).status_code == 422
    assert browser.post("/device/", {"code": code.user_code, "decision": "deny"}).status_code == 302
    poll = json.dumps({"device_code": code.device_code})
    problem(Api(None).post("login/device/token/", poll), 400, "access-denied")
    assert not Token.objects.exists()


def test_codes_cannot_be_tried_at_will(researcher: User) -> None:
    browser = Client()
    browser.force_login(researcher)
    statuses = [browser.get("/device/?code=BBBB-BBBB").status_code for _ in range(12)]
    assert statuses == [422] * 10 + [429] * 2


def test_another_site_cannot_press_allow(researcher: User) -> None:
    code = DeviceCode.model_validate_json(Api(None).post("login/device/", "{}").content)
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(researcher)
    assert strict.post("/device/", {"code": code.user_code, "decision": "allow"}).status_code == 403


def test_too_many_requests_of_one_token_are_told_when_to_come_again(researcher: User, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"api_rate": 3})
    caller, other = api(researcher, Scope.JOBS_READ), api(researcher, Scope.JOBS_READ)
    statuses = [caller.get("jobs/").status_code for _ in range(8)]  # a new minute may begin in between, once
    assert statuses.count(429) >= 2
    assert statuses[:3] == [200] * 3
    reply = other.get("jobs/")
    assert reply.status_code == 200
    for _ in range(8):
        reply = caller.get("jobs/")
    problem(reply, 429, "throttled")
    assert 0 < int(reply["Retry-After"]) <= 61


def test_a_header_that_anyone_can_send_does_not_evade_the_count_of_logins(researcher: User) -> None:
    body = json.dumps({"username": "researcher", "password": "wrong"})
    replies = [Api(None).post("login/", body, **{"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(12)]
    assert replies[-1].status_code == 429
