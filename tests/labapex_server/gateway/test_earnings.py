"""A worker reads by its own key what its judged jobs were paid, and nobody else does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from tests.browser.stage import Story

from labapex.protocol.api import Earnings
from labapex_server.accounts.models import User
from labapex_server.gateway import views
from labapex_server.verification import earnings
from labapex_server.workers.models import Worker
from labapex_worker.identity import Identity

BEGAN = 1_790_000_000


@pytest.fixture(autouse=True)
def _fresh_limits(db: None) -> None:
    cache.clear()


@pytest.fixture
def key(tmp_path: Path) -> Identity:
    return Identity.create(tmp_path / "key")


@pytest.fixture
def worker(researcher: User, host: User, key: Identity) -> Worker:
    """A worker with one verified job, paid half a credit."""
    story = Story(owner=researcher, host=host, began=BEGAN, epochs=2).submitted()
    story.queued().running().trained().challenged().opened(0, 17, 18, 64, 92).judged()
    Worker.objects.filter(pk=story.worker.pk).update(public_key=key.public_key)
    return Worker.objects.get(pk=story.worker.pk)


def ask(worker: Worker, key: Identity, *, at: float | None = None, skip: int = 0, **changes: Any) -> Any:
    question = key.asks_for_earnings(worker.pk, at=int(time.time() if at is None else at), skip=skip)
    body = question.model_copy(update=changes).model_dump_json()
    return Client(enforce_csrf_checks=True).post("/gateway/earnings/", data=body, content_type="application/json")


def test_a_judged_job_stands_there_with_what_the_ledger_paid(worker: Worker, key: Identity) -> None:
    answer = ask(worker, key)
    assert answer.status_code == 200
    found = Earnings.model_validate_json(answer.content)
    assert [(each.verdict, each.paid) for each in found.results] == [("verified", 500_000)]
    lease = worker.leases.get()
    assert (found.results[0].job, found.results[0].settled_at) == (lease.job_id, lease.ended_at.timestamp())


def test_the_list_comes_in_parts(worker: Worker, key: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(earnings, "PAGE", 1)
    assert len(Earnings.model_validate_json(ask(worker, key).content).results) == 1
    rest = Earnings.model_validate_json(ask(worker, key, skip=1).content)
    assert (rest.results, rest.total) == ((), 1)


def test_a_banned_worker_still_reads_what_it_was_paid(worker: Worker, key: Identity) -> None:
    Worker.objects.update(banned=True)
    assert ask(worker, key).status_code == 200


def test_another_key_an_altered_question_and_an_unknown_worker_get_the_same_answer(
    worker: Worker, key: Identity, tmp_path: Path
) -> None:
    stranger = ask(worker, Identity.create(tmp_path / "another"))
    altered = ask(worker, key, at=time.time() - 1, signature=bytes(64))
    unknown = ask(Worker(), key)
    assert [answer.status_code for answer in (stranger, altered, unknown)] == [401, 401, 401]
    assert stranger.content == altered.content == unknown.content


def test_an_old_question_cannot_be_repeated(worker: Worker, key: Identity) -> None:
    for off in (-2 * views.CLOCK_SECONDS, 2 * views.CLOCK_SECONDS):
        answer = ask(worker, key, at=time.time() + off)
        assert answer.status_code == 401
        assert "clock differs" in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"worker": 1}', b" " * 5000], ids=["empty", "bare", "wrong", "long"])
def test_what_is_no_question_is_refused(body: bytes) -> None:
    answer = Client().post("/gateway/earnings/", data=body, content_type="application/json")
    assert answer.status_code in (400, 413)


def test_asking_without_end_is_slowed_down(worker: Worker, key: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "READS", 2)
    assert [ask(worker, key).status_code for _ in range(3)] == [200, 200, 429]
