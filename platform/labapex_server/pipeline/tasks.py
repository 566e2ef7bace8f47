"""The tasks by the names that `conveyor` rings. Each is short to say: claim, work, apply."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from labapex.protocol.states import JobState
from labapex_server.alerts import delivery
from labapex_server.celery import app
from labapex_server.lib import clock
from labapex_server.pipeline import disputing, stages, tally
from labapex_server.pipeline import sweep as sweeping
from labapex_server.pipeline.tally import Outcome
from labapex_server.verification import erasing

F = TypeVar("F", bound=Callable[..., None])


def _task(name: str) -> Callable[[F], F]:
    register: Callable[[F], F] = app.task(name=name)
    return register


@_task("preflight")
def preflight(job: str) -> None:
    stages.work(UUID(job), JobState.SUBMITTED, stages.preflight)


@_task("package")
def package(job: str) -> None:
    stages.work(UUID(job), JobState.PACKAGING, stages.package)


@_task("resume")
def resume(job: str) -> None:
    stages.work(UUID(job), JobState.RESUMING, stages.resume)


@_task("challenge")
def challenge(job: str) -> None:
    stages.work(UUID(job), JobState.CHALLENGED, stages.challenge)


@_task("verify")
def verify(job: str) -> None:
    stages.work(UUID(job), JobState.VERIFYING, stages.verify)


@_task("settle")
def settle(job: str) -> None:
    stages.work(UUID(job), JobState.SETTLING, stages.settle)


@_task("erase")
def erase() -> None:
    tally.counted("erase", lambda: _done(erasing.erase_due(clock.now())))


@_task("deliver")
def deliver() -> None:
    tally.counted("deliver", lambda: _done(delivery.deliver()))


@_task("dispute")
def dispute(dispute: str) -> None:
    disputing.work(UUID(dispute))


@_task("sweep")
def sweep() -> None:
    tally.counted("sweep", lambda: _done(sweeping.sweep()))


def _done(_: object) -> Outcome:
    return Outcome.DONE
