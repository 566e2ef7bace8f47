"""What machines are told of a platform, and who may know how much."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.db import DatabaseError, connection
from django.test import Client
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from tests.labapex_server.gateway.stage import Run, queued_job
from tests.labapex_server.scenes import finished, submitted

from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Transfer
from labapex_server.lib import clock
from labapex_server.pipeline import stages, tally, tasks
from labapex_server.pipeline.models import Tally
from labapex_server.pipeline.tally import Outcome
from labapex_server.pulse import checks
from labapex_server.pulse import views as pulse
from labapex_server.verification import services as verification

TOKEN = "a token of the operator's"
Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered from one question to the next."""
    monkeypatch.setattr(checks, "_KEPT_SECONDS", -1)
    monkeypatch.setattr("labapex_server.pulse.books.KEPT_SECONDS", -1)


def scraped(client: Client) -> Values:
    reply = client.get("/metrics", headers={"Host": "localhost"})
    assert reply.status_code == 200
    return values(reply.content.decode())


def values(text: str) -> Values:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Values, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


# -- who may know ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("host", "extra", "status"),
    [
        ("localhost", {}, 200),
        ("127.0.0.1:8000", {}, 200),
        ("testserver", {}, 403),  # a page somewhere else, through the operator's browser
        ("localhost", {"REMOTE_ADDR": "192.0.2.7"}, 403),
        ("localhost", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 403),  # through a proxy, whoever it was
        ("localhost", {"HTTP_X_FORWARDED_PROTO": "https"}, 403),
    ],
)
def test_without_a_token_programs_of_this_machine_alone_are_told(
    client: Client, host: str, extra: dict[str, str], status: int
) -> None:
    assert client.get("/metrics", headers={"Host": host}, **extra).status_code == status  # type: ignore[arg-type]


@pytest.mark.django_db
def test_with_a_token_whoever_has_it_is_told_and_nobody_else(client: Client, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"metrics_token": SecretStr(TOKEN)})
    assert client.get("/metrics", headers={"Host": "localhost"}).status_code == 403
    assert client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 403
    assert client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert TOKEN not in repr(settings.LABAPEX)


# -- does it live, can it serve ----------------------------------------------------------------------------------------


def test_a_process_lives_whatever_is_behind_it(client: Client) -> None:
    assert client.get("/healthz").content == b"ok\n"  # without a database: this test has none


@pytest.mark.django_db
def test_a_platform_whose_pipeline_sweeps_is_ready(client: Client) -> None:
    tasks.sweep()
    reply = client.get("/readyz")
    assert reply.status_code == 200
    assert reply.content.decode().splitlines() == [
        f"ok {name}" for name in ("database", "disk", "files", "broker", "channels", "pipeline", "trust")
    ]


@pytest.mark.django_db
def test_a_dead_pipeline_is_a_warning_and_takes_no_process_from_the_balancer(client: Client) -> None:
    tasks.sweep()
    Tally.objects.update(last_at=clock.now() - timedelta(seconds=90))
    reply = client.get("/readyz", headers={"Host": "localhost"})
    assert reply.status_code == 200
    assert "warning pipeline: it swept 90 seconds ago" in reply.content.decode()
    assert value(scraped(client), "labapex_ready", check="pipeline") == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("check", "setting"), [("channels", "redis://127.0.0.1:1/0"), ("broker", "redis://127.0.0.1:1/0"), ("disk", 2**62)]
)
def test_what_is_away_is_named_and_only_to_the_operator_with_its_reason(
    client: Client, settings: Any, check: str, setting: Any
) -> None:
    name = {"channels": "channel_url", "broker": "broker_url", "disk": "free_bytes"}[check]
    settings.LABAPEX = settings.LABAPEX.model_copy(update={name: setting})
    if check == "broker":
        from labapex_server.celery import make

        broken = make(setting, longest=1, sweep_seconds=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("labapex_server.celery.app", broken)
            told, known = client.get("/readyz"), client.get("/readyz", headers={"Host": "localhost"})
    else:
        told, known = client.get("/readyz"), client.get("/readyz", headers={"Host": "localhost"})
    word = "failed" if check == "disk" else "warning"
    assert told.status_code == (503 if check == "disk" else 200)
    assert f"{word} {check}\n" in told.content.decode()
    assert f"{word} {check}: " in known.content.decode()


@pytest.mark.django_db
def test_without_its_database_a_process_serves_nobody_and_metrics_still_say_so(client: Client) -> None:
    def refuse(*_: Any) -> None:
        raise DatabaseError("the server closed the connection")

    with connection.execute_wrapper(refuse):
        reply = client.get("/readyz")
        found = scraped(client)
    assert reply.status_code == 503
    assert "failed database\n" in reply.content.decode()
    assert value(found, "labapex_ready", check="database") == 0
    assert not any(name == "labapex_jobs" for name, _ in found)


# -- how is it ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_jobs_are_told_by_state_with_the_age_of_the_oldest(client: Client, researcher: User) -> None:
    submitted(researcher)
    queued_job(researcher)
    Job.objects.filter(state="queued").update(state_changed_at=clock.now() - timedelta(hours=1))
    found = scraped(client)
    assert [value(found, "labapex_jobs", state=state) for state in ("submitted", "queued", "running")] == [1, 1, 0]
    assert value(found, "labapex_job_oldest_seconds", state="queued") == pytest.approx(3600, abs=60)
    assert value(found, "labapex_job_oldest_seconds", state="running") == 0


@pytest.mark.django_db
def test_a_sound_book_has_nothing_wrong_and_a_spoilt_one_is_told(client: Client, researcher: User) -> None:
    job = submitted(researcher)
    account = ledger.account_of(researcher)
    held = ledger.hold(account, amount=1_000_000, job=job.pk, memo="")
    Job.objects.update(hold=held)
    found = scraped(client)
    wrong = "labapex_ledger_wrong_micro_credits"
    assert [value(found, wrong, what=what) for what in ("escrow", "overdrawn", "held-for-ended-jobs")] == [0, 0, 0]
    assert value(found, "labapex_ledger_circulating_micro_credits") == 100_000_000
    assert value(found, "labapex_ledger_held_micro_credits") == 1_000_000
    Job.objects.update(ended_at=clock.now())  # as if its hold had been forgotten
    assert value(scraped(client), wrong, what="held-for-ended-jobs") == 1_000_000
    Transfer.objects.filter(pk=held.pk).update(status="posted")  # nobody was paid out of it
    assert value(scraped(client), wrong, what="escrow") == 1_000_000
    Transfer.objects.filter(pk=held.pk).update(amount=101_000_000)
    assert value(scraped(client), wrong, what="overdrawn") == 1_000_000


@pytest.mark.django_db
def test_the_pipelines_tasks_are_counted_by_how_they_ended(client: Client, researcher: User) -> None:
    job = submitted(researcher)

    def preflight(job: Job, beat: stages.Beat) -> None:
        raise RuntimeError("no room")

    assert stages.work(job.pk, JobState.SUBMITTED, preflight)
    assert tally.counted("sweep", lambda: Outcome.DONE) is Outcome.DONE
    tally.counted("sweep", lambda: Outcome.DONE)
    found = scraped(client)
    assert value(found, "labapex_task_runs_total", task="preflight", outcome="failed") == 1
    assert value(found, "labapex_task_runs_total", task="sweep", outcome="done") == 2
    assert value(found, "labapex_task_seconds_total", task="sweep", outcome="done") >= 0
    last = value(found, "labapex_task_last_timestamp_seconds", task="sweep", outcome="done")
    assert last == pytest.approx(clock.now().timestamp(), abs=60)


@pytest.mark.django_db
def test_a_task_that_raises_is_counted_as_failed_and_raises() -> None:
    def broken() -> Outcome:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        tally.counted("erase", broken)
    assert [(row.task, row.outcome, row.count) for row in Tally.objects.all()] == [("erase", "failed", 1)]


@pytest.mark.django_db
def test_requests_are_counted_by_route_and_never_by_path(client: Client, researcher: User) -> None:
    job = submitted(researcher)
    client.force_login(researcher)
    client.get(f"/jobs/{job.pk}/")
    client.get("/nothing/here/")
    found = scraped(client)
    route = {"route": "/jobs/<uuid:job_id>/", "method": "GET", "status": "200"}
    assert value(found, "labapex_http_requests_total", **route) >= 1
    assert value(found, "labapex_http_requests_total", route="none", method="GET", status="404") >= 1
    assert str(job.pk) not in client.get("/metrics", headers={"Host": "localhost"}).content.decode()


def test_a_runs_log_and_its_files_are_counted(client: Client, run: Run, platform: str) -> None:
    before = scraped(client)
    finished(run)
    path = f"{platform}/gateway/leases/{run.lease.pk}/chunks/0"
    assert httpx.put(path, content=b"x", headers={"Authorization": "Bearer none"}).status_code == 401
    after = scraped(client)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - before.get((name, tuple(sorted(labels.items()))), 0.0)

    assert grown("labapex_points_total") == 14
    assert grown("labapex_frames_total", answer="ack") == len(run.executable.frames)
    assert grown("labapex_frame_bytes_total") == sum(len(frame.payload) for frame in run.executable.frames)
    assert grown("labapex_commit_seconds_count") > 0
    assert grown("labapex_http_requests_total", route=r"/gateway/leases/.*", method="PUT", status="401") == 1
    assert value(after, "labapex_leases", state="finished") == 1
    assert value(after, "labapex_workers", state="enrolled") == 1


def test_what_is_read_from_the_books_is_kept_for_a_moment(
    client: Client, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labapex_server.pulse.books.KEPT_SECONDS", 3600)
    books = pulse.Books()
    first = list(books.collect())
    verification.stop(submitted(researcher))
    assert list(books.collect())[1:] == first[1:]
