"""Doorbells: within the process at once, and through Redis to another process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis
from channels.layers import channel_layers
from channels_redis.core import RedisChannelLayer

from labapex_server.telemetry import hints
from labapex_server.telemetry.hints import Bell

REDIS = os.environ.get("LABAPEX_TEST_REDIS_URL", "redis://127.0.0.1:6379/15")
PATIENCE = 20.0


async def test_a_ring_from_another_thread_wakes_who_waits() -> None:
    bell = Bell("a")
    threading.Thread(target=hints.ring, args=("a",)).start()
    assert await bell.wait(PATIENCE)
    bell.close()


async def test_rings_before_the_wait_count_once() -> None:
    bell = Bell("a")
    hints.ring("a")
    hints.ring("a")
    assert await bell.wait(PATIENCE)
    assert not await bell.wait(0.01)
    bell.close()


async def test_only_what_was_asked_for_rings() -> None:
    bell = Bell("a")
    hints.ring("b")
    assert not await bell.wait(0.01)
    bell.listen("b")
    hints.ring("b")
    assert await bell.wait(PATIENCE)
    bell.close()
    hints.ring("a")
    assert not await bell.wait(0.01)


def test_a_bell_of_a_loop_that_is_gone_is_no_error() -> None:
    async def leave_one() -> Bell:
        return Bell("a")

    bell = asyncio.run(leave_one())
    hints.ring("a")
    bell.close()


@pytest.fixture
def redis_layer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hints through a real Redis."""
    try:
        redis.Redis.from_url(REDIS).ping()
    except redis.exceptions.ConnectionError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no Redis answers at {REDIS}")
    layer = RedisChannelLayer(hosts=[REDIS], prefix=f"test-{uuid.uuid4()}")
    before = channel_layers.set("default", layer)
    monkeypatch.setattr(hints, "_exchange", hints._Exchange())
    yield layer
    hints._exchange.close()
    channel_layers.set("default", before)


RINGER = """
import sys
from channels_redis.core import RedisChannelLayer
from django.conf import settings
settings.configure(CHANNEL_LAYERS={"default": {
    "BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [sys.argv[1]], "prefix": sys.argv[2]}}})
from labapex_server.telemetry import hints
hints.ring("far")
hints._exchange.close()
"""


async def test_a_ring_reaches_another_process(redis_layer: Any) -> None:
    bell = Bell("far")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(root / p) for p in ("client_sdk", "platform"))}
    rang = False
    for _ in range(20):  # the subscription may come after the first ring
        await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", RINGER, REDIS, redis_layer.prefix], env=environment, check=True
        )
        if rang := await bell.wait(0.5):
            break
    bell.close()
    assert rang


async def test_a_redis_that_is_gone_costs_nothing_but_the_hint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = channel_layers.set("default", RedisChannelLayer(hosts=["redis://127.0.0.1:1"]))
    monkeypatch.setattr(hints, "_exchange", hints._Exchange())
    bell = Bell("here")
    hints.ring("here")
    assert await bell.wait(PATIENCE)
    bell.close()
    hints._exchange.close()
    channel_layers.set("default", before)
