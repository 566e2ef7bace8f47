"""A stopped job takes its lease along at once. Where the process dies in between, the sweep does it."""

from __future__ import annotations

from typing import Any

from labapex.protocol.states import JobState
from labapex_server.jobs.signals import advanced
from labapex_server.marketplace import services


def connect() -> None:
    advanced.connect(_release, dispatch_uid="marketplace.release")


def _release(*, state: JobState, **_: Any) -> None:
    if state.ended:
        services.release_ended()
