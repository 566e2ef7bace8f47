from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection
from tests.labapex_server.gateway.stage import Host, a_run, queued_job
from tests.labapex_server.scenes import finished, opened, stand_in, submitted

from labapex.errors import SandboxUnavailable
from labapex.protocol.states import Fault, JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.jobs.packages import IndexSilent
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock
from labapex_server.lib.store import StoreSilent
from labapex_server.pipeline import conveyor, stages
from labapex_server.pipeline import sweep as sweeping
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was asked of the broker."""
    from labapex_server.celery import app

    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(app, "send_task", lambda name, args, **_: calls.append((name, args[0])))
    return calls


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def now_in(seconds: float) -> Any:
    return clock.now() + timedelta(seconds=seconds)


@pytest.mark.django_db
def test_a_state_wakes_its_task_when_it_is_committed(
    researcher: User, rung: list[tuple[str, str]], django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        job = submitted(researcher)
        assert rung == []
    assert rung == [("preflight", str(job.pk))]


def test_a_job_goes_from_stage_to_stage_until_it_waits_for_a_worker(
    transactional_db: None, researcher: User, rung: list[tuple[str, str]]
) -> None:
    job = submitted(researcher)
    assert stages.work(job.pk, JobState.SUBMITTED, stages.preflight)
    assert stages.work(job.pk, JobState.PACKAGING, stages.package)
    assert Job.objects.get().state == JobState.QUEUED
    assert [name for name, _ in rung] == ["preflight", "package"]
    assert not stages.work(job.pk, JobState.SUBMITTED, stages.preflight)  # an old message rings for nothing


@pytest.mark.django_db
def test_a_claimed_job_is_left_alone(researcher: User) -> None:
    job = submitted(researcher)
    jobs.claim(job.pk, JobState.SUBMITTED, "someone else", 60)
    assert not stages.work(job.pk, JobState.SUBMITTED, stages.preflight)
    assert Job.objects.get().state == JobState.SUBMITTED


@pytest.mark.django_db
def test_a_silent_file_store_costs_a_job_time_and_none_of_its_attempts(researcher: User) -> None:
    job = submitted(researcher)

    def stage(job: Job, beat: stages.Beat) -> None:
        raise StoreSilent("does not answer: played")

    for _ in range(10):
        assert stages.work(job.pk, JobState.SUBMITTED, stage)
        assert not stages.work(job.pk, JobState.SUBMITTED, stage), "it rests for a while"
        Job.objects.update(claimed_until=None)
    job.refresh_from_db()
    assert (job.state, job.stage_attempts) == (JobState.SUBMITTED, 0)


def lose_the_connection() -> None:
    """What a restart of the database does to this connection."""
    if connection.vendor != "postgresql":
        pytest.skip("needs PostgreSQL, by LABAPEX_TEST_DATABASE_URL: a connection to SQLite cannot be lost")
    with connection.cursor() as cursor, suppress(DatabaseError):
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_lost_connection_to_the_database_costs_a_job_time_and_none_of_its_attempts(
    transactional_db: None, researcher: User
) -> None:
    job = submitted(researcher)

    def stage(job: Job, beat: stages.Beat) -> None:
        lose_the_connection()
        Job.objects.count()

    for _ in range(10):
        assert stages.work(job.pk, JobState.SUBMITTED, stage)
        Job.objects.update(claimed_until=None)
    job.refresh_from_db()
    assert (job.state, job.stage_attempts) == (JobState.SUBMITTED, 0)


def test_what_a_child_computes_outlives_a_lost_connection(transactional_db: None, researcher: User) -> None:
    job = submitted(researcher)

    def stage(job: Job, beat: stages.Beat) -> None:
        lose_the_connection()
        beat()
        stages.preflight(job, beat)

    assert stages.work(job.pk, JobState.SUBMITTED, stage)
    job.refresh_from_db()
    assert job.state == JobState.PACKAGING


@pytest.mark.django_db
def test_work_whose_claim_was_lost_is_dropped(researcher: User) -> None:
    job = submitted(researcher)

    def stage(job: Job, beat: stages.Beat) -> None:
        verification.stop(Job.objects.get(pk=job.pk))
        beat()
        raise AssertionError("it went on")

    assert stages.work(job.pk, JobState.SUBMITTED, stage)
    assert Job.objects.get().state == JobState.CANCELLED


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (IndexSilent("the package index is silent"), "the last: the package index is silent"),
        (RuntimeError("/home/operator has no room"), "the last: an error of its own, which its log has"),
    ],
)
def test_a_stage_that_always_fails_ends_the_job_with_its_cause(researcher: User, error: Exception, cause: str) -> None:
    job = submitted(researcher)

    def stage(job: Job, beat: stages.Beat) -> None:
        raise error

    for attempt in range(1, 5):
        assert stages.work(job.pk, JobState.SUBMITTED, stage)
        job.refresh_from_db()
        assert (job.state, job.stage_attempts) == (JobState.SUBMITTED, attempt)
        assert not stages.work(job.pk, JobState.SUBMITTED, stage)  # not at once again
        Job.objects.update(claimed_until=clock.now() - timedelta(seconds=1))
    assert stages.work(job.pk, JobState.SUBMITTED, stage)
    job.refresh_from_db()
    assert (job.state, Fault(job.fault)) == (JobState.FAILED, Fault.PLATFORM)
    assert job.reason == f"the platform gave up after 5 attempts at this stage; {cause}"


@pytest.mark.django_db
def test_a_platform_that_is_stopped_at_each_attempt_ends_the_job_and_says_so(researcher: User) -> None:
    job = submitted(researcher)
    Job.objects.update(stage_attempts=5)
    assert stages.work(job.pk, JobState.SUBMITTED, stages.preflight)
    assert Job.objects.get().reason.endswith("5 attempts at this stage; during the last it was stopped")


@pytest.mark.django_db
def test_a_platform_without_a_sandbox_runs_nothing_and_charges_nothing(
    researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise SandboxUnavailable("install bubblewrap")

    monkeypatch.setattr("labapex.sandbox.popen", refuse)
    job = submitted(researcher)
    stages.work(job.pk, JobState.SUBMITTED, stages.preflight)
    job.refresh_from_db()
    assert (job.state, Fault(job.fault)) == (JobState.FAILED, Fault.PLATFORM)
    assert ledger.balance(ledger.account_of(researcher)).held == 0


def test_from_the_last_leaf_to_the_verdict_and_the_money(rig: Host, researcher: User, host: User) -> None:
    job = queued_job(researcher)
    held = ledger.hold(ledger.account_of(researcher), amount=job.budget, job=job.pk, memo="")
    Job.objects.update(hold=held)
    run = a_run(Job.objects.get(), rig)
    finished(run)
    assert stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    assert Challenge.objects.exists()
    opened(run)
    assert stages.work(job.pk, JobState.VERIFYING, stages.verify)
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    job.refresh_from_db()
    assert JobState(job.state) in (JobState.VERIFIED, JobState.REJECTED)
    assert job.state == verification.signed(job).verdict.verdict
    money = ledger.outcome(job.hold)
    assert money.held == money.paid + money.refunded
    assert not money.open


# -- the sweep ---------------------------------------------------------------------------------------------------------


def test_the_sweep_rings_for_what_nobody_holds_and_not_all_the_time(
    transactional_db: None, researcher: User, rung: list[tuple[str, str]]
) -> None:
    job = submitted(researcher)
    rung.clear()
    assert sweeping.sweep().rung == 0  # it was rung when it was submitted
    assert sweeping.sweep(now_in(31)).rung == 1
    jobs.claim(job.pk, JobState.SUBMITTED, "a", 600)
    assert sweeping.sweep(now_in(120)).rung == 0
    assert sweeping.sweep(now_in(700)).rung == 1


def test_a_dead_process_leaves_work_that_the_next_one_takes_up(
    transactional_db: None, researcher: User, rung: list[tuple[str, str]]
) -> None:
    job = submitted(researcher)
    jobs.claim(job.pk, JobState.SUBMITTED, "killed", 600)
    assert sweeping.forget_claims() == 1
    rung.clear()
    assert sweeping.sweep().rung == 1
    assert rung == [("preflight", str(job.pk))]


def test_a_dead_broker_costs_time_and_nothing_else(
    transactional_db: None, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labapex_server.celery import app

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("broker")

    monkeypatch.setattr(app, "send_task", refuse)
    job = submitted(researcher)
    assert sweeping.sweep().rung == 0
    monkeypatch.setattr(app, "send_task", lambda *_, **__: None)
    assert sweeping.sweep().rung == 1
    assert job.state == JobState.SUBMITTED


def test_a_challenged_job_is_rung_until_its_challenge_is_drawn(
    rig: Host, researcher: User, rung: list[tuple[str, str]]
) -> None:
    run = a_run(queued_job(researcher), rig)
    job = finished(run)
    assert ("challenge", str(job.pk)) in rung
    assert sweeping.sweep(now_in(31)).rung == 1
    verification.challenge(verification.finished_lease(job))
    assert sweeping.sweep(now_in(100)).rung == 0


def test_time_decides_over_silence_and_over_late_openings(
    rig: Host, researcher: User, rung: list[tuple[str, str]]
) -> None:
    job = queued_job(researcher)
    a_run(job, rig)
    assert sweeping.sweep(now_in(31)).silent == 1
    finished(a_run(Job.objects.get(), rig))
    verification.challenge(verification.finished_lease(Job.objects.get()))
    swept = sweeping.sweep(now_in(601))
    assert swept.late == 1
    assert Job.objects.get().state == JobState.SETTLING
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    assert Job.objects.get().state == JobState.REJECTED


def test_every_task_has_a_state_and_every_state_that_waits_for_the_platform_a_task() -> None:
    from labapex_server.celery import app

    app.loader.import_default_modules()
    assert set(conveyor.STAGES.values()) | {"sweep"} <= set(app.tasks)
