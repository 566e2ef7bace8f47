"""A request that is repeated, and two that arrive at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.db import connections
from tests.labapex_server.api.test_rest import Api, problem
from tests.labapex_server.scenes import request, submitted

from labapex_server.accounts.models import User
from labapex_server.api.models import KeptAnswer
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.workers.models import EnrolmentCode


@pytest.fixture(autouse=True)
def _no_throttle_left() -> None:
    cache.clear()


@pytest.mark.django_db
def test_the_same_key_gives_the_same_answer_for_a_day(host: User, researcher: User) -> None:
    api = Api(host)
    first = api.post("enrolments/", "{}", **{"Idempotency-Key": "k"})
    again = api.post("enrolments/", "{}", **{"Idempotency-Key": "k"})
    assert (first.status_code, first.content) == (again.status_code, again.content) == (201, first.content)
    assert EnrolmentCode.objects.count() == 1
    assert Api(researcher).post("enrolments/", "{}", **{"Idempotency-Key": "k"}).content != first.content
    KeptAnswer.objects.update(created_at=clock.now() - timedelta(days=1, seconds=1))
    assert api.post("enrolments/", "{}", **{"Idempotency-Key": "k"}).content != first.content


@pytest.mark.django_db
def test_the_same_key_with_another_body_is_refused(host: User) -> None:
    api = Api(host)
    api.post("enrolments/", "{}", **{"Idempotency-Key": "k"})
    problem(api.post("enrolments/", "{ }", **{"Idempotency-Key": "k"}), 422, "idempotency-key-reused")
    for key in ("", "k" * 201):
        problem(api.post("enrolments/", "{}", **{"Idempotency-Key": key}), 400, "invalid")
    assert EnrolmentCode.objects.count() == 1


@pytest.mark.django_db
def test_what_is_shown_once_is_kept_sealed(host: User) -> None:
    code = Api(host).post("enrolments/", "{}", **{"Idempotency-Key": "k"}).json()["code"]
    assert code.encode() not in bytes(KeptAnswer.objects.get().answer)


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_makes_something_and_both_get_it(host: User, researcher: User) -> None:
    code, job = Api(host), Api(researcher)
    body = request(researcher).model_dump_json()

    def both(_: int) -> tuple[str, str]:
        try:
            made = code.post("enrolments/", "{}", **{"Idempotency-Key": "k"})
            submitted = job.post("jobs/", body, **{"Idempotency-Key": "k"})
            return made.json()["code"], submitted.json()["id"]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(both, range(4)))
    assert len(answers) == 1
    assert (EnrolmentCode.objects.count(), Job.objects.count()) == (1, 1)


@pytest.mark.django_db
def test_a_job_that_did_not_change_is_not_sent_again(researcher: User) -> None:
    job, api = submitted(researcher), Api(researcher)
    first = api.get(f"jobs/{job.pk}/")
    same = api.get(f"jobs/{job.pk}/", **{"If-None-Match": first["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    Job.objects.update(reason="something new")
    assert api.get(f"jobs/{job.pk}/", **{"If-None-Match": first["ETag"]}).status_code == 200


@pytest.mark.django_db
def test_a_list_is_stable_while_jobs_are_added(researcher: User) -> None:
    made = [submitted(researcher).pk for _ in range(5)]
    api, seen, cursor = Api(researcher), [], ""
    while cursor is not None:
        page = api.get(f"jobs/?limit=2&cursor={cursor}").json()
        assert len(page["results"]) <= 2
        seen += [job["id"] for job in page["results"]]
        cursor = page["next"]
        submitted(researcher)
    assert seen == [str(pk) for pk in reversed(made)]


@pytest.mark.django_db
@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "cursor=%00", "cursor=abc"])
def test_a_limit_or_a_cursor_that_is_none_is_named(researcher: User, query: str) -> None:
    response = Api(researcher).get(f"jobs/?{query}")
    problem(response, 400, "invalid")
    assert list(response.json()["errors"]) == [query.partition("=")[0]]
