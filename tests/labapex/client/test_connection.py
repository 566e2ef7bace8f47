"""What is asked again, and what an answer that is none becomes."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from tests.labapex.client.submitted import SPEC
from tests.labapex.memory_platform import (
    TOKEN,
    URL,
    MemoryPlatform,
    broken,
    problem,
    unavailable,
    unreachable,
)

from labapex.client import Client
from labapex.client.connection import ATTEMPTS
from labapex.errors import (
    LabApexError,
    MalformedInput,
    MissingScope,
    NotEnoughCredit,
    NotFinished,
    NotFound,
    PlatformUnreachable,
    UsageError,
)


def test_what_may_be_repeated_is_repeated_with_growing_pauses(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.faults.extend([unreachable, broken, unavailable])
    assert client.me().username == "ada"
    assert sleeps == [0.25, 0.5, 7.0]  # the last one is what Retry-After asked for


def test_a_date_in_retry_after_is_understood(platform: MemoryPlatform, user_home: Path, sleeps: list[float]) -> None:
    date = "Fri, 20 Nov 2026 12:00:07 GMT"
    platform.faults.append(lambda request: httpx.Response(429, headers={"Retry-After": date}))
    now = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC).timestamp()
    client = Client(URL, TOKEN, transport=platform.transport, sleep=sleeps.append, now=lambda: now)
    client.me()
    assert sleeps == [7.0]


def test_who_is_told_to_come_again_in_an_hour_is_told_so(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.faults.append(lambda request: problem(429, "throttled", "too many requests", **{"Retry-After": "3600"}))
    with pytest.raises(LabApexError, match="too many requests"):
        client.me()
    assert sleeps == []


def test_patience_ends_and_says_who_did_not_answer(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.extend([unreachable] * ATTEMPTS)
    with pytest.raises(PlatformUnreachable, match=r"https://apex\.test does not answer \(connection refused\)"):
        client.me()
    assert len(platform.seen) == ATTEMPTS


def test_a_busy_platform_is_unreachable_in_the_end(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.extend([unavailable] * ATTEMPTS)
    with pytest.raises(PlatformUnreachable, match="503"):
        client.me()


def test_a_login_that_may_have_arrived_is_not_sent_twice(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(broken)
    with pytest.raises(PlatformUnreachable):
        client.login("ada", "secret")
    assert len(platform.seen) == 1


def test_a_job_whose_answer_was_lost_is_not_submitted_twice(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    lost = [False]
    handle = platform.handle

    def lose_the_first_answer(request: httpx.Request) -> httpx.Response:
        response = handle(request)
        if request.url.path == "/api/v1/jobs/" and request.method == "POST" and not lost[0]:
            lost[0] = True
            return broken(request)
        return response

    client = Client(URL, TOKEN, transport=httpx.MockTransport(lose_the_first_answer), sleep=lambda s: None)
    client.submit(SPEC, job_folder)
    assert lost[0]
    assert len(platform.jobs) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid", UsageError),
        (402, "not-enough-credit", NotEnoughCredit),
        (404, "not-found", NotFound),
        (404, "not-finished", NotFinished),
        (409, "not-finished", NotFinished),
        (413, "too-large", UsageError),
        (422, "digest-mismatch", MalformedInput),
        (409, "conflict", LabApexError),
        (500, "internal", PlatformUnreachable),
    ],
)
def test_a_problem_becomes_the_error_with_its_exit_code(
    platform: MemoryPlatform, client: Client, status: int, code: str, kind: type[LabApexError]
) -> None:
    platform.faults.append(lambda request: problem(status, code, "because of this"))
    with pytest.raises(kind, match="because of this") as caught:
        client.me()
    assert type(caught.value) is kind


def test_a_problem_names_the_fields_that_are_wrong(platform: MemoryPlatform, client: Client) -> None:
    body = {"title": "x", "status": 400, "detail": "not accepted", "code": "invalid", "errors": {"epochs": "too many"}}
    platform.faults.append(lambda request: httpx.Response(400, json=body))
    with pytest.raises(UsageError, match=r"not accepted \(epochs: too many\)"):
        client.me()


def test_a_reply_that_does_not_follow_the_protocol_is_refused(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: httpx.Response(200, json={"username": "ada", "admin": True}))
    with pytest.raises(MalformedInput, match="Me: "):
        client.me()


def test_a_token_for_other_things_says_which_scope_is_missing(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: problem(403, "missing-scope", "this needs the scope jobs:write"))
    with pytest.raises(MissingScope, match="jobs:write") as caught:
        client.me()
    assert caught.value.code == "missing-scope"


def test_the_client_needs_no_tensor_library() -> None:
    check = "import sys, labapex.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'django')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
