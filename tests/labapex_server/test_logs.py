"""What the platform writes into its logs: about what, and never a secret."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.conf import settings as django_settings
from django.core.management import call_command
from django.test import Client
from structlog.contextvars import clear_contextvars
from tests.labapex_server.gateway.fixtures import rig, run, threads
from tests.labapex_server.gateway.stage import Host, a_run, key_request
from tests.labapex_server.scenes import finished, opened, request, stand_in

from labapex.protocol.states import JobState
from labapex_server import asgi
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.gateway import books
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Job
from labapex_server.lib import keys, logs
from labapex_server.lib.errors import Refused
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages, tasks
from labapex_server.telemetry.offload import offload
from labapex_server.workers import services as workers

__all__ = ["rig", "run", "threads"]

PASSWORD = "correct horse battery staple"


class Written:
    """Every line that anybody logged, as JSON has it, down to the least."""

    def __init__(self, look: logs.Format) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(logs.formatter(look))

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    yield from _writing("json")


@pytest.fixture
def as_text() -> Iterator[Written]:
    yield from _writing("text")


def _writing(look: logs.Format) -> Iterator[Written]:
    found, root = Written(look), logging.getLogger()
    level = root.level
    root.addHandler(found.handler)
    root.setLevel(logging.DEBUG)
    with logs.on():
        clear_contextvars()  # what tests before this one were about
        yield found
    root.setLevel(level)
    root.removeHandler(found.handler)


log = logging.getLogger("tests.of.logs")


# -- about what --------------------------------------------------------------------------------------------------------


def test_a_line_says_what_it_is_about_and_no_longer_than_it_is(written: Written) -> None:
    with logs.on(job="j"):
        with logs.on(lease="l"):
            logs.about(worker="w")
            log.warning("inside %d", 1)
        log.info("between")
    log.info("after")
    inside, between, after = written.lines
    assert inside["event"] == "inside 1"
    assert [inside[name] for name in ("level", "logger", "job", "lease", "worker")] == [
        "warning", "tests.of.logs", "j", "l", "w"
    ]  # fmt: skip
    assert inside["timestamp"].endswith("Z")
    assert ("job" in between, "lease" in between, "worker" in between, "job" in after) == (True, False, False, False)


def test_for_people_it_is_one_readable_line_and_a_traceback_without_values(as_text: Written) -> None:
    secret = "-".join(["never", "to", "be", "seen"])
    try:
        with logs.on(job="j", request="r"):
            raise ValueError(f"not the {len(secret)} letters")
    except ValueError:
        with logs.on(job="j", request="r"):
            log.exception("it broke")
    first, *rest = as_text.text.splitlines()
    assert first.endswith("ERROR tests.of.logs it broke [request=r job=j]")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: not the 16 letters"
    assert secret not in as_text.text


async def test_threads_of_the_gateway_write_for_their_connection(written: Written) -> None:
    with logs.on(worker="w"):
        await offload(log.info, "from a thread")
    assert [line["worker"] for line in written.lines if line["event"] == "from a thread"] == ["w"]


async def test_every_answer_names_its_request_and_so_does_its_log(
    threads: None, researcher: User, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = await offload(accounts.issue_token, researcher, name="x")

    def break_down(*_: Any) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("labapex_server.api.views.jobs.find", break_down)
    job = "4635f120-5b1c-4d0e-9a36-0d5f1d1a7c11"
    scope = {
        "type": "http", "method": "GET", "path": f"/api/v1/jobs/{job}/", "query_string": b"", "http_version": "1.1",
        "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {secret}".encode()), (b"x-request-id", b"theirs")],
    }  # fmt: skip
    monkeypatch.setattr("labapex_server.api.exchange.jobs.find", break_down)
    socket = ApplicationCommunicator(asgi.application, scope)
    await socket.send_input({"type": "http.request", "body": b"", "more_body": False})
    started = await socket.receive_output(timeout=20)
    await socket.receive_output(timeout=20)
    await socket.wait(timeout=20)
    assert started["status"] == 500
    (name,) = [value.decode() for field, value in started["headers"] if field == b"x-request-id"]
    (line,) = [line for line in written.lines if "could not be answered" in line["event"]]
    assert (line["request"], line["job"]) == (name, job)
    assert secret not in written.text


@pytest.mark.django_db
def test_a_stage_writes_for_its_job(researcher: User, written: Written) -> None:
    job = jobs.submit(researcher, request=request(researcher))

    def preflight(job: Job, beat: stages.Beat) -> None:
        raise RuntimeError("no room")

    stages.work(job.pk, JobState.SUBMITTED, preflight)
    (line,) = [line for line in written.lines if "failed at stage" in line["event"]]
    assert (line["task"], line["job"]) == ("preflight", str(job.pk))
    assert "RuntimeError: no room" in line["exception"]


# -- no secrets --------------------------------------------------------------------------------------------------------


def test_a_whole_flow_with_all_that_can_go_wrong_writes_no_secret(
    rig: Host, host: User, written: Written, settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Sign-up, tokens, a device's login, upload, preflight, lease, keys, log, challenge, replay, settlement, download; wrong
    passwords, tokens, codes, states and stages that break."""
    stand_in(settings, monkeypatch)
    secrets: dict[str, bytes | str] = {"password": PASSWORD}
    web = Client()
    web.post("/signup/", {"username": "newcomer", "password1": PASSWORD, "password2": PASSWORD})
    web.post("/login/", {"username": "newcomer", "password": f"{PASSWORD} wrong"})
    secrets["session"] = web.cookies[django_settings.SESSION_COOKIE_NAME].value
    owner = User.objects.get(username="newcomer")
    call_command("topup", "newcomer", "10")
    body = json.dumps({"username": "newcomer", "password": PASSWORD, "name": "laptop"})
    token = web.post("/api/v1/login/", body, content_type="application/json").json()["token"]
    secrets["token"] = token
    device = web.post("/api/v1/login/device/", json.dumps({"name": "ci"}), content_type="application/json").json()
    secrets["device code"] = device["device_code"]
    api = {"Authorization": f"Bearer {token}"}
    web.get("/api/v1/jobs/", headers={"Authorization": f"Bearer {token[:-1]}x"})
    enrolled, _ = workers.new_code(host)
    secrets["enrolment code"] = enrolled
    web.post("/gateway/enrol/", json.dumps({"code": enrolled, "name": "x"}), content_type="application/json")

    job = jobs.submit(owner, request=request(owner, data="data"))
    stages.work(job.pk, JobState.SUBMITTED, stages.preflight)
    stages.work(job.pk, JobState.PACKAGING, stages.package)
    secrets["content key"] = jobs.content_key(Job.objects.get(pk=job.pk))
    for blob in Blob.objects.all():
        secrets[f"key of {blob.digest}"] = blobs.content_key(blob)
    run = a_run(Job.objects.get(pk=job.pk), rig)
    secrets["lease's token"], secrets["run key"] = run.token, marketplace.run_key(run.lease)
    wrong, *_ = key_request(Lease.objects.get(pk=run.lease.pk))
    with pytest.raises(Refused):
        books.release_keys(rig.worker, wrong)  # a second executable asks
    finished(run)
    tasks.sweep()
    stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    opened(run)
    stages.work(job.pk, JobState.VERIFYING, stages.verify)
    stages.work(job.pk, JobState.SETTLING, stages.settle)
    assert JobState(Job.objects.get(pk=job.pk).state).ended
    for path in ("weights", "proof", "certificate", "verdict", "receipt"):
        web.get(f"/api/v1/jobs/{job.pk}/{path}/", headers=api)
    monkeypatch.setattr("labapex_server.jobs.services.view", lambda *_: 1 / 0)
    web.get(f"/api/v1/jobs/{job.pk}/", headers=api)
    for path in _keys(django_settings.LABAPEX.home):
        secrets[f"keys/{path.name}"] = path.read_bytes()

    told = written.text + "".join(capsys.readouterr())
    assert "ZeroDivisionError" in told
    assert len(secrets) > 12
    for name, secret in secrets.items():
        for form in _forms(secret):
            assert form not in told, name


def _keys(home: Path) -> list[Path]:
    keys.wrap(b"", "first use"), keys.verdict_key(), keys.log_key()
    found = [path for path in (home / "keys").iterdir() if path.is_file() and path.stat().st_size]
    assert {"wrapping", "verdict", "log"} <= {path.name for path in found}
    return found


def _forms(secret: bytes | str) -> Iterator[str]:
    """As it might be written."""
    if isinstance(secret, str):
        yield secret
        secret = secret.encode()
    yield secret.hex()
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")
    yield repr(secret)[2:-1]
    yield json.dumps(repr(secret))[3:-2]
