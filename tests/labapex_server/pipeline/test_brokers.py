"""The pipeline as it runs in production: Celery's own program on a real broker, beside nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from kombu import Connection
from tests.labapex_server.scenes import STAND_IN

from labapex import sandbox
from labapex_server.celery import sandboxed

ROOT = Path(__file__).resolve().parents[3]
BROKERS = {
    "redis": os.environ.get("LABAPEX_TEST_REDIS_URL", "redis://127.0.0.1:6379/15"),
    "rabbitmq": os.environ.get("LABAPEX_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//"),
}
SUBMIT = """
from tests.labapex_server.scenes import submitted
from labapex_server.accounts import services as accounts
from labapex_server.ledger import services as ledger
user = accounts.create_user("researcher", password="p")
ledger.top_up(ledger.account_of(user), amount=10**9, memo="")
submitted(user, "linger: 4")
"""
STATE = "from labapex_server.jobs.models import Job; j = Job.objects.get(); print('AT', j.state, j.stage_attempts)"


@pytest.fixture(params=list(BROKERS))
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a platform of its own on this broker."""
    url, queue = BROKERS[request.param], f"labapex-test-{uuid.uuid4()}"
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except OSError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no {request.param} at {url}: {error}")
    variables = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "labapex_server.settings",
        "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("platform", "worker_agent", "client_sdk", ".")),
        "LABAPEX_HOME": str(tmp_path / "home"),
        "LABAPEX_BROKER_URL": url,
        "LABAPEX_QUEUE": queue,
        "LABAPEX_CLAIM_SECONDS": "3",
        "LABAPEX_RING_SECONDS": "2",
        "LABAPEX_SWEEP_SECONDS": "0.5",
        "LABAPEX_RUNNER_COMMAND": json.dumps([sys.executable, str(STAND_IN)]),
    }
    if sandbox.available() is not None:
        variables[sandbox.UNCONFINED_SETTING] = "1"
    manage(variables, "migrate", "-v0")
    yield variables
    with Connection(url) as connection:
        for name in (queue, sandboxed(queue)):
            with suppress(*connection.channel_errors):
                connection.default_channel.queue_delete(name)


def manage(environment: dict[str, str], *arguments: str) -> str:
    line = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(line, env=environment, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def state(environment: dict[str, str]) -> list[str]:
    said = manage(environment, "shell", "-v0", "-c", STATE)
    return next(line for line in said.splitlines() if line.startswith("AT")).split()[1:]


def until(environment: dict[str, str], reached: Callable[[list[str]], bool]) -> list[str]:
    """Look until it is so; a stuck pipeline ends in a failure, not in a wait without end."""
    give_up = time.monotonic() + 60
    while not reached(now := state(environment)):
        assert time.monotonic() < give_up, f"the job stays {now}"
    return now


def worker(environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "celery", "-A", "labapex_server", "worker", "-B", "-c", "1", "-l", "warning"]
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen(line, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def test_a_killed_worker_of_the_pipeline_costs_time_and_no_job(environment: dict[str, str], tmp_path: Path) -> None:
    manage(environment, "shell", "-v0", "-c", SUBMIT)
    first = worker(environment, tmp_path)
    try:
        until(environment, lambda now: now == ["submitted", "1"])
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        second = worker(environment, tmp_path)
        try:
            until(environment, lambda now: now[0] == "queued")
        finally:
            os.killpg(second.pid, signal.SIGKILL)
            second.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert b"Traceback" not in (tmp_path / "worker.log").read_bytes()
