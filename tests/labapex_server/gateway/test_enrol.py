"""A host becomes a worker by a code from the portal, once."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client

from labapex.protocol.api import EnrolReply
from labapex.sealing import new_signing_keys
from labapex_server.accounts.models import User
from labapex_server.gateway import views
from labapex_server.lib import clock
from labapex_server.workers import services as workers
from labapex_server.workers.models import EnrolmentCode, Worker


@pytest.fixture(autouse=True)
def _fresh_limits(db: None) -> None:
    cache.clear()


def enrol(body: Any) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    client = Client(enforce_csrf_checks=True)
    return client.post("/gateway/enrol/", data=data, content_type="application/json")


def request(code: str) -> dict[str, str]:
    return {"code": code, "name": "rig", "public_key": base64.b64encode(new_signing_keys()[1]).decode()}


def test_a_code_makes_a_worker(host: User) -> None:
    code, _ = workers.new_code(host)
    answer = enrol(request(code))
    assert answer.status_code == 201
    reply = EnrolReply.model_validate_json(answer.content)
    assert Worker.objects.get(pk=reply.worker).owner == host


def test_a_code_is_good_once(host: User) -> None:
    code, _ = workers.new_code(host)
    assert enrol(request(code)).status_code == 201
    answer = enrol(request(code))
    assert answer.status_code == 400
    assert "new one" in answer.json()["detail"]


def test_a_late_or_invented_code_is_refused(host: User) -> None:
    code, _ = workers.new_code(host)
    EnrolmentCode.objects.update(expires_at=clock.after(-1))
    assert enrol(request(code)).status_code == 400
    assert enrol(request("guess")).status_code == 400
    assert not Worker.objects.exists()


def test_a_key_that_is_enrolled_already_is_a_conflict(host: User) -> None:
    first, second = (workers.new_code(host)[0] for _ in range(2))
    asked = request(first)
    assert enrol(asked).status_code == 201
    assert enrol({**asked, "code": second}).status_code == 409


@pytest.mark.parametrize(
    "body",
    [b"", b"{", {"code": "x"}, {**request("x"), "admin": True}, {**request("x"), "public_key": "AAAA"}, b" " * 5000],
)
def test_a_malformed_request_is_refused(body: Any) -> None:
    assert enrol(body).status_code in (400, 413)


def test_guessing_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "TRIES", 3)
    answers = [enrol(request("guess")) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [400, 400, 400, 429, 429]
    assert answers[-1].headers["Retry-After"] == str(views.WINDOW_SECONDS)


def test_only_post_is_answered() -> None:
    assert Client().get("/gateway/enrol/").status_code == 405
