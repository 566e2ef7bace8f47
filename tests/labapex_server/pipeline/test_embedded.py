"""Celery's own worker in a thread of this process, on the real in-memory broker."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connections
from tests.labapex_server.scenes import heard, stand_in, submitted

from labapex.errors import UsageError
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.jobs.signals import advanced
from labapex_server.pipeline.embedded import Embedded


def test_a_submitted_job_is_packaged_by_itself_and_only_one_process_may_do_so(
    transactional_db: None, researcher: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(settings, monkeypatch)
    queued = threading.Event()

    def listen(*, state: JobState, **_: Any) -> None:
        if state is JobState.QUEUED:
            queued.set()

    advanced.connect(listen)
    pipeline = Embedded()
    try:
        with pytest.raises(UsageError, match="another `serve`"):
            Embedded()
        pipeline.start()
        with heard() as states:
            submitted(researcher)
            assert queued.wait(60)
        assert states == [JobState.SUBMITTED, JobState.PACKAGING, JobState.QUEUED]
        assert Job.objects.get().state == JobState.QUEUED
    finally:
        pipeline.stop()
        advanced.disconnect(listen)
        connections.close_all()
    Embedded().stop()  # the lock is free again
