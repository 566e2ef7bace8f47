"""The same flow on what larger installations run: PostgreSQL, Redis or RabbitMQ, and Celery as a program of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from kombu import Connection
from psycopg import sql
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack

pytestmark = pytest.mark.e2e

DATABASE = os.environ.get("LABAPEX_TEST_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
REDIS = os.environ.get("LABAPEX_TEST_REDIS_URL", "redis://127.0.0.1:6379/9")
RABBITMQ = os.environ.get("LABAPEX_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//")
OWN_REDIS = 13  # the number of a Redis database that no other test uses


def missing(service: str, error: Exception) -> NoReturn:
    """In CI every service has to be there; elsewhere its tests are skipped with its name."""
    if os.environ.get("CI"):
        raise error
    pytest.skip(f"{service} does not answer: {error}")


def database_url(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextmanager
def own_database() -> Iterator[str]:
    """The URL of a database that is made for one platform and dropped after it."""
    name = f"labapex_e2e_{uuid.uuid4().hex}"
    try:
        server = psycopg.connect(DATABASE, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        missing("PostgreSQL", error)
    with server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield database_url(DATABASE, name)
    finally:
        with psycopg.connect(DATABASE, autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        server.close()


@contextmanager
def own_redis() -> Iterator[str]:
    url = database_url(REDIS, str(OWN_REDIS))
    with redis.Redis.from_url(url, socket_connect_timeout=5) as server:
        try:
            server.flushdb()
        except redis.ConnectionError as error:
            missing("Redis", error)
        try:
            yield url
        finally:
            server.flushdb()


@contextmanager
def own_queue(queue: str) -> Iterator[str]:
    with Connection(RABBITMQ, connect_timeout=5) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=5)
        except OSError as error:
            missing("RabbitMQ", error)
        try:
            yield RABBITMQ
        finally:
            with suppress(*connection.channel_errors):
                connection.default_channel.queue_delete(queue)


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def services(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform on PostgreSQL with this broker; live updates go through Redis in both."""
    folder = tmp_path_factory.mktemp(f"on-{request.param}")
    queue = f"labapex-e2e-{uuid.uuid4()}"
    with own_database() as database, own_redis() as cache, own_queue(queue) as rabbitmq:
        settings = {
            "LABAPEX_DATABASE_URL": database,
            "LABAPEX_CHANNEL_URL": cache,
            "LABAPEX_BROKER_URL": cache if request.param == "redis" else rabbitmq,
            "LABAPEX_QUEUE": queue,
            "LABAPEX_CLAIM_SECONDS": "5",  # after which a dead pipeline's work is taken up by another one
        }
        with running(request, folder, Stack(folder, settings=settings, pipeline=True)) as started:
            yield started


def test_a_job_is_verified_though_the_pipeline_is_killed_in_the_middle_of_its_replay(
    services: Stack, tmp_path: Path
) -> None:
    assert services.pipeline is not None
    assert not (services.folder / "platform" / "platform.sqlite3").exists()
    with services.worker("host"):
        job = services.submit(scripts.job(tmp_path / "replayed", pause=0.15, audit_segments=100))
        follower = services.begin("logs", "-f", str(job), "--json")
        services.until_state(job, "verifying")
        services.pipeline.kill()
        assert services.job(job).state.value == "verifying"  # it was in time
        services.pipeline.start()
        said = follower.wait()
    assert said.code == 0, said.err + services.logs()
    assert said.summary["loss_logs"] == scripts.ITERATIONS
    assert said.summary["replay_max_error"] == 0.0
    paid = said.summary["paid"]
    assert paid + said.summary["refunded"] == 10_000_000
    assert services.owner.me().available == paid > 0
    assert services.client.me().held == 0
