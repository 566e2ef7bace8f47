"""PostgreSQL, Redis and RabbitMQ for one platform each, and an object store that moto plays; gone afterwards."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from kombu import Connection
from moto.server import ThreadedMotoServer
from psycopg import sql

from labapex_server.celery import sandboxed

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
            for name in (queue, sandboxed(queue)):
                with suppress(*connection.channel_errors):
                    connection.default_channel.queue_delete(name)


@contextmanager
def own_store() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
