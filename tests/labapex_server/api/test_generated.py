"""The API called by its own description: requests of every kind that it allows, and of kinds that it does not.

Bounded and seeded: the same requests in each run. Uploads do not pass through Django and have tests of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.core.cache import cache
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from hypothesis import HealthCheck, Phase, settings
from rest_framework.throttling import SimpleRateThrottle
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.labapex_server.scenes import submitted

from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SECRET = "a-name-that-only-its-owner-knows"
described = schemathesis.openapi.from_wsgi("/api/schema", get_wsgi_application()).exclude(operation_id="upload_file")
bounded = settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _one_connection_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(SimpleRateThrottle, "THROTTLE_RATES", {"login": "100000/min"})
    for signal in (request_started, request_finished):  # the test's transaction is on this connection
        signal.disconnect(close_old_connections)
    cache.clear()
    yield
    cache.clear()
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture
def job(researcher: User) -> Job:
    return submitted(researcher, name=SECRET)


def call(case: Any, user: User, job: Job) -> Any:
    """As this user, about this job."""
    if "job" in case.path_parameters:
        case.path_parameters["job"] = str(job.pk)
    return case.call(headers={"Authorization": f"Bearer {accounts.issue_token(user, name='generated')}"})


@pytest.mark.django_db
@described.parametrize()
@bounded
def test_every_answer_is_as_described(case: Any, researcher: User, job: Job) -> None:
    case.validate_response(call(case, researcher, job), checks=CHECKS)


@pytest.mark.django_db
@described.parametrize()
@bounded
def test_no_request_gets_what_is_anothers(case: Any, other_researcher: User, job: Job) -> None:
    reply = call(case, other_researcher, job)
    assert SECRET not in reply.text
    if "job" in case.path_parameters:
        assert 400 <= reply.status_code < 500
    assert Job.objects.get(pk=job.pk).state == job.state
