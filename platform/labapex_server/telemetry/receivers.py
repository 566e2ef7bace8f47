"""Every change that someone may be waiting for rings a bell."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from labapex.protocol.states import JobState
from labapex_server.jobs.signals import advanced
from labapex_server.telemetry import hints
from labapex_server.telemetry.signals import progressed


def connect() -> None:
    progressed.connect(_progressed, dispatch_uid="telemetry.progressed")
    advanced.connect(_advanced, dispatch_uid="telemetry.advanced")


def _progressed(*, job_id: UUID, **_: Any) -> None:
    hints.ring(hints.job_topic(job_id))


def _advanced(*, job_id: UUID, state: JobState, **_: Any) -> None:
    hints.ring(hints.job_topic(job_id))
    hints.ring(hints.state_topic(job_id))
    if state is JobState.QUEUED:
        hints.ring(hints.QUEUE)
