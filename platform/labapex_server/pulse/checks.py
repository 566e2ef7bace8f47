"""Whether the platform can do its work: what a balancer and an operator ask.

Without its database or room on its disk a process can serve nobody, and should get no requests. Whatever else is away costs
time and nothing more, so it is told and changes nothing: a broker that fails must not take every web process with it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
from django.conf import settings
from django.db import DatabaseError, connection
from kombu.exceptions import OperationalError

from labapex_server.lib import clock, store, trust
from labapex_server.pipeline.models import Tally
from labapex_server.pipeline.tally import Outcome

_TIMEOUT_SECONDS = 2
_KEPT_SECONDS = 2.0  # so that whoever asks much oftener asks nobody behind us
_SWEEPS = 30  # of them missed, and a minute at least: then the pipeline counts as dead


@dataclass(frozen=True)
class Check:
    """`problem`: what is wrong, for the operator; empty: nothing. `needed`: without it this process cannot serve."""

    name: str
    problem: str = ""
    needed: bool = False


_lock = threading.Lock()
_last: tuple[float, list[Check]] = (float("-inf"), [])


def checks() -> list[Check]:
    """All of them, at most a moment old."""
    global _last
    with _lock:
        at, found = _last
        if time.monotonic() - at > _KEPT_SECONDS:
            found = [Check(name, _ask(ask), needed) for name, ask, needed in _CHECKS]
            _last = (time.monotonic(), found)
        return found


def forget() -> None:
    """Let the next caller ask anew."""
    global _last
    _last = (float("-inf"), [])


def _ask(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (DatabaseError, OSError, OperationalError, redis.RedisError, store.StoreSilent) as error:
        return f"{type(error).__name__}: {error}"


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return ""


def _disk() -> str:
    disk = os.statvfs(settings.LABAPEX.home)
    free = disk.f_bavail * disk.f_frsize
    return f"{free} bytes are free" if free < settings.LABAPEX.free_bytes else ""


def _broker() -> str:
    if settings.LABAPEX.embedded():
        return ""
    from labapex_server.celery import app

    with app.connection_for_write(connect_timeout=_TIMEOUT_SECONDS) as broker:
        broker.ensure_connection(max_retries=1, timeout=_TIMEOUT_SECONDS)
    return ""


def _channels() -> str:
    url = settings.LABAPEX.channel_url
    if url is None:
        return ""
    with redis.Redis.from_url(
        url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
    ) as channels:
        channels.ping()
    return ""


def _files() -> str:
    if settings.LABAPEX.object_store_url:
        store.size(settings.LABAPEX.home / "blobs" / "none")
    return ""


def _trust() -> str:
    return "; ".join(trust.ending(time.time()))


def _pipeline() -> str:
    last = Tally.objects.filter(task="sweep", outcome=Outcome.DONE.value).first()
    if last is None:
        return "it has not swept yet"
    silent = (clock.now() - last.last_at).total_seconds()
    most = max(60.0, _SWEEPS * settings.LABAPEX.sweep_seconds)
    return f"it swept {silent:.0f} seconds ago" if silent > most else ""


_CHECKS: tuple[tuple[str, Callable[[], str], bool], ...] = (
    ("database", _database, True),
    ("disk", _disk, True),
    ("files", _files, False),
    ("broker", _broker, False),
    ("channels", _channels, False),
    ("pipeline", _pipeline, False),
    ("trust", _trust, False),
)
