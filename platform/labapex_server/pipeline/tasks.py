"""The tasks by the names that `conveyor` rings. Each is short to say: claim, work, apply."""

from __future__ import annotations

from uuid import UUID

from labapex.protocol.states import JobState
from labapex_server.celery import app
from labapex_server.pipeline import stages
from labapex_server.pipeline import sweep as sweeping


@app.task(name="preflight")  # type: ignore[misc]
def preflight(job: str) -> None:
    stages.work(UUID(job), JobState.SUBMITTED, stages.preflight)


@app.task(name="package")  # type: ignore[misc]
def package(job: str) -> None:
    stages.work(UUID(job), JobState.PACKAGING, stages.package)


@app.task(name="challenge")  # type: ignore[misc]
def challenge(job: str) -> None:
    stages.work(UUID(job), JobState.CHALLENGED, stages.challenge)


@app.task(name="verify")  # type: ignore[misc]
def verify(job: str) -> None:
    stages.work(UUID(job), JobState.VERIFYING, stages.verify)


@app.task(name="settle")  # type: ignore[misc]
def settle(job: str) -> None:
    stages.work(UUID(job), JobState.SETTLING, stages.settle)


@app.task(name="sweep")  # type: ignore[misc]
def sweep() -> None:
    sweeping.sweep()
