"""Who may what through REST, and what an error looks like."""

from __future__ import annotations

import base64
import json
from typing import Any
from uuid import uuid4

import pytest
from django.core.cache import cache
from django.test import Client
from tests.labapex_server.gateway.stage import Run
from tests.labapex_server.scenes import finished, request, submitted

from labapex.protocol.api import EnrolmentCode, Events, JobPage, JobView, Me, Problem, Scope, Storage, Stored
from labapex.protocol.canonical import canonical
from labapex.protocol.states import JobState
from labapex.protocol.verdict import Receipt, SignedVerdict
from labapex.sealing import verify
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.jobs import erasure
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Gone
from labapex_server.verification import services as verification
from labapex_server.workers import services as workers

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_throttle_left() -> None:
    cache.clear()


class Api:
    """A program that speaks for a user."""

    def __init__(self, user: User | None, header: str | None = None) -> None:
        token = header or (f"Token {accounts.issue_token(user, name='test')}" if user else None)
        self._headers = {"Authorization": token} if token else {}
        self._client = Client(raise_request_exception=True)

    def get(self, path: str, **headers: str) -> Any:
        return self._client.get(f"/api/v1/{path}", headers=self._headers | headers)

    def head(self, path: str) -> Any:
        return self._client.head(f"/api/v1/{path}", headers=self._headers)

    def delete(self, path: str) -> Any:
        return self._client.delete(f"/api/v1/{path}", headers=self._headers)

    def post(self, path: str, body: str = "", **headers: str) -> Any:
        return self._client.post(
            f"/api/v1/{path}", body, content_type="application/json", headers=self._headers | headers
        )


def problem(response: Any, status: int, code: str) -> str:
    """The detail of an error that must be this one."""
    assert response["Content-Type"] == "application/problem+json"
    document = Problem.model_validate_json(response.content)
    assert (response.status_code, document.status, document.code) == (status, status, code)
    return document.detail


# -- entering ----------------------------------------------------------------------------------------------------------


def test_a_login_gives_a_token_that_works(researcher: User) -> None:
    body = json.dumps({"username": "researcher", "password": "researcher has a password", "name": "laptop"})
    response = Api(None).post("login/", body)
    assert response.status_code == 201
    token = response.json()["token"]
    me = Me.model_validate_json(Api(None, f"Token {token}").get("me/").content)
    assert (me.username, me.available, me.held) == ("researcher", 100_000_000, 0)
    assert (me.token.name, me.token.scopes) == ("laptop", tuple(sorted(Scope)))


def test_a_wrong_password_gives_nothing_and_tries_are_counted(researcher: User) -> None:
    body = json.dumps({"username": "researcher", "password": "wrong"})
    for _ in range(5):
        problem(Api(None).post("login/", body), 401, "not-logged-in")
    response = Api(None).post("login/", body)
    problem(response, 429, "throttled")
    assert int(response["Retry-After"]) > 0
    page = Client().post("/login/", {"login": "researcher", "password": "researcher has a password"})
    assert "Too many failed login attempts" in page.content.decode()  # the pages and the API count together


@pytest.mark.parametrize("header", [None, "Token", "Bearer apex_invented", "Token lax_x", "Basic dTpw", "Bearer \xff"])
def test_without_a_good_token_nothing_opens(researcher: User, header: str | None) -> None:
    job = submitted(researcher)
    api = Api(None, header)
    for path in ("me/", "jobs/", f"jobs/{job.pk}/", f"jobs/{job.pk}/weights/", f"blobs/{'0' * 64}/"):
        response = api.get(path)
        problem(response, 401, "not-logged-in")
        assert response["WWW-Authenticate"] == "Bearer"
    problem(api.post(f"jobs/{job.pk}/stop/"), 401, "not-logged-in")
    problem(api.post("enrolments/"), 401, "not-logged-in")


def test_a_401_says_which_token_was_sent_and_no_more_of_it() -> None:
    detail = problem(Api(None, "Bearer apex_abcdefghijkl").get("me/"), 401, "not-logged-in")
    assert "apex_abcd" in detail
    assert "apex_abcde" not in detail


def test_a_session_cookie_opens_nothing_here(researcher: User) -> None:
    client = Client()
    client.force_login(researcher)
    assert client.get("/api/v1/me/").status_code == 401


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_a_job_is_submitted_once_for_a_key(researcher: User) -> None:
    api, body = Api(researcher), request(researcher).model_dump_json()
    first = api.post("jobs/", body, **{"Idempotency-Key": "k"})
    assert first.status_code == 201
    view = JobView.model_validate_json(first.content)
    assert JobView.model_validate_json(api.post("jobs/", body, **{"Idempotency-Key": "k"}).content).id == view.id
    other = request(researcher, epochs=9).model_dump_json()
    problem(api.post("jobs/", other, **{"Idempotency-Key": "k"}), 422, "idempotency-key-reused")
    problem(api.post("jobs/", body, **{"Idempotency-Key": "k" * 201}), 400, "invalid")
    assert Job.objects.count() == 1


def test_what_does_not_follow_the_protocol_is_400_with_the_field(researcher: User) -> None:
    api, good = Api(researcher), json.loads(request(researcher).model_dump_json())
    assert "spec.epochs" in problem(
        api.post("jobs/", json.dumps(good | {"spec": good["spec"] | {"epochs": 0}})), 400, "invalid"
    )
    assert "surprise" in problem(api.post("jobs/", json.dumps(good | {"surprise": 1})), 400, "invalid")
    for body in ("", "{", "[]", "null", '{"spec":' * 1000, json.dumps(good)[:-1]):
        problem(api.post("jobs/", body), 400, "invalid")
    outside = good | {"bundle": {"code": [good["bundle"]["code"][0] | {"path": "../train.py"}], "data": []}}
    assert "bundle.code.0.path" in problem(api.post("jobs/", json.dumps(outside)), 400, "invalid")


def test_a_job_over_the_credit_is_402(researcher: User) -> None:
    body = request(researcher, budget="101").model_dump_json()
    assert "100 are available" in problem(Api(researcher).post("jobs/", body), 402, "not-enough-credit")


def test_anothers_job_does_not_exist(researcher: User, other_researcher: User) -> None:
    job, api = submitted(researcher), Api(other_researcher)
    for path in ("", "events/", "verdict/", "receipt/", "weights/"):
        problem(api.get(f"jobs/{job.pk}/{path}"), 404, "not-found")
    problem(api.post(f"jobs/{job.pk}/stop/"), 404, "not-found")
    problem(api.get(f"jobs/{uuid4()}/"), 404, "not-found")
    assert JobPage.model_validate_json(api.get("jobs/").content).results == ()
    assert Job.objects.get().state == JobState.SUBMITTED


def test_an_operators_rights_are_not_the_apis(operator: User, researcher: User) -> None:
    problem(Api(operator).get(f"jobs/{submitted(researcher).pk}/"), 404, "not-found")


def test_jobs_come_newest_first_a_page_at_a_time(researcher: User, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"page_size": 2})
    made = [submitted(researcher).pk for _ in range(5)]
    Job.objects.update(created_at=clock.now())  # all at one instant: the order is still total
    api, seen, cursor = Api(researcher), [], ""
    while cursor is not None:
        page = JobPage.model_validate_json(
            api._client.get("/api/v1/jobs/", {"cursor": cursor}, headers=api._headers).content
        )
        seen += [view.id for view in page.results]
        cursor = page.next
    assert sorted(seen) == sorted(made)
    assert seen == sorted(seen, reverse=True)
    problem(api.get("jobs/?cursor=nonsense"), 400, "invalid")


def test_a_list_costs_the_same_number_of_queries_for_one_job_and_for_many(
    researcher: User, django_assert_max_num_queries: Any
) -> None:
    for _ in range(12):
        submitted(researcher)
    api = Api(researcher)
    with django_assert_max_num_queries(10):
        api.get("jobs/")


def test_stopping_ends_the_job_and_a_receipt_tells_where_the_money_is(researcher: User) -> None:
    job, api = submitted(researcher), Api(researcher)
    problem(api.get(f"jobs/{job.pk}/receipt/"), 404, "not-finished")
    stopped = JobView.model_validate_json(api.post(f"jobs/{job.pk}/stop/").content)
    assert stopped.state == JobState.CANCELLED
    receipt = Receipt.model_validate_json(api.get(f"jobs/{job.pk}/receipt/").content)
    assert (receipt.held, receipt.paid, receipt.refunded) == (0, 0, 0)
    assert receipt.reason == "stopped by its owner"


def test_there_is_no_verdict_before_there_is_one(researcher: User) -> None:
    job, api = submitted(researcher), Api(researcher)
    problem(api.get(f"jobs/{job.pk}/verdict/"), 404, "not-finished")
    problem(api.get(f"jobs/{job.pk}/weights/"), 404, "not-finished")


def test_events_are_given_by_cursor(run: Run, researcher: User) -> None:
    job, api = finished(run), Api(researcher)
    first = Events.model_validate_json(api.get(f"jobs/{job.pk}/events/").content)
    assert list(first.losses) == run.executable.losses
    again = Events.model_validate_json(api.get(f"jobs/{job.pk}/events/?cursor={first.cursor}").content)
    assert again.losses == ()
    problem(api.get(f"jobs/{job.pk}/events/?cursor=nonsense"), 400, "invalid")


def test_a_verdict_can_be_checked_with_the_public_key_alone(run: Run, researcher: User) -> None:
    lease = verification.finished_lease(finished(run))
    verification.challenge(lease)
    verification.reject_late(lease)
    signed = SignedVerdict.model_validate_json(Api(researcher).get(f"jobs/{lease.job_id}/verdict/").content)
    key = Api(None).get("keys/verdict/").json()
    assert key["key_id"] == signed.key_id
    verify(base64.b64decode(key["public_key"]), canonical(signed.verdict), signed.signature)
    problem(Api(researcher).get(f"jobs/{lease.job_id}/weights/"), 400, "invalid")


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_an_enrolment_code_enrols_a_host_for_its_owner(host: User) -> None:
    response = Api(host).post("enrolments/")
    assert response.status_code == 201
    code = EnrolmentCode.model_validate_json(response.content)
    assert workers.enrol(code.code, "rig", bytes(32)).owner == host


def test_whether_a_file_is_here_is_told_to_its_owner_only(researcher: User, other_researcher: User) -> None:
    digest = request(researcher).bundle.code[0].digest
    assert Api(researcher).head(f"blobs/{digest}/").status_code == 200
    assert Api(other_researcher).head(f"blobs/{digest}/").status_code == 404


def test_every_path_and_method_answers_with_a_problem(researcher: User) -> None:
    api = Api(researcher)
    problem(api.get("nothing/here/"), 404, "not-found")
    problem(api.get("jobs/not-a-uuid/"), 404, "not-found")
    problem(api.get("login/device/"), 405, "method-not-allowed")


def test_a_stopped_job_is_not_stopped_by_a_get(researcher: User) -> None:
    job = submitted(researcher)
    problem(Api(researcher).get(f"jobs/{job.pk}/stop/"), 405, "method-not-allowed")
    assert jobs.view(Job.objects.get()).state == JobState.SUBMITTED


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_a_jobs_data_is_deleted_when_it_has_ended_and_not_before(researcher: User) -> None:
    job, api = submitted(researcher), Api(researcher)
    assert "stop it first" in problem(api.delete(f"jobs/{job.pk}/data/"), 409, "conflict")
    api.post(f"jobs/{job.pk}/stop/")
    view = JobView.model_validate_json(api.delete(f"jobs/{job.pk}/data/").content)
    assert [each.what.value for each in view.erased] == ["files", "states", "results"]
    assert Storage.model_validate_json(api.get("storage/").content).files == 0


def test_files_that_no_job_needs_are_deleted(researcher: User) -> None:
    request(researcher)
    assert Storage.model_validate_json(Api(researcher).get("storage/").content).files == 1
    assert Storage.model_validate_json(Api(researcher).delete("storage/files/").content).files == 0


def test_a_result_that_was_deleted_is_gone_and_says_why(run: Run, researcher: User) -> None:
    finished(run)
    job = Job.objects.get(pk=run.lease.job_id)
    erasure.note(job, Stored.RESULTS, "the test deleted them")
    with pytest.raises(Gone) as gone:
        erasure.require(job, Stored.RESULTS)
    assert (gone.value.status, gone.value.code) == (410, "gone")
