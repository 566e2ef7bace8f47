"""What the tests of the log, the gateway and the live page share; their `conftest.py` name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.core.cache import cache
from django.db import connections
from tests.labapex_server.gateway.server import serving
from tests.labapex_server.gateway.stage import Host, Run, a_host, a_run, a_runner, queued_job

from labapex_server.accounts.models import User
from labapex_server.telemetry.offload import shutdown
from labapex_server.telemetry.writer import writer


@pytest.fixture
def threads(transactional_db: None) -> Iterator[None]:
    """Real commits from real threads, which are gone before the database is."""
    cache.clear()
    yield
    writer.stop()
    writer.forget()
    shutdown()
    executor = SyncToAsync.single_thread_executor  # where Channels reads sessions; it keeps its connection
    executor.submit(connections.close_all).result()


@pytest.fixture
def rig(threads: None, home: Path, settings: Any, tmp_path: Path, host: User) -> Host:
    """An enrolled worker, and a runner to give it."""
    a_runner(settings, tmp_path / "runner")
    return a_host(host)


@pytest.fixture
def run(rig: Host, researcher: User) -> Run:
    """A run of 14 iterations that has just begun."""
    return a_run(queued_job(researcher), rig)


@pytest.fixture
def platform(rig: Host) -> Iterator[str]:
    """The base URL of the running platform."""
    with serving() as url:
        yield url
