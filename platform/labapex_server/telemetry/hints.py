"""Doorbells between threads and processes: "there is something new about this", and nothing more.

A hint may be lost, doubled or late; whoever waits for one also looks by itself once in a while. Within a process a hint
wakes event loops directly. Between processes it travels as a Channels group message where a real channel layer is
configured; all of that traffic lives in one thread with its own loop, so that Celery workers, the log writer and any
number of event loops can ring without owning a connection.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any
from uuid import UUID

from channels.layers import InMemoryChannelLayer, get_channel_layer
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

SEND_SECONDS = 2.0
CANCELS = 20

QUEUE = "queue"
"""Rung when a job becomes free for a worker to take."""


def job_topic(job_id: UUID) -> str:
    """Rung when there is anything new to see of a job: many times a second while it trains."""
    return f"job.{job_id}"


def state_topic(job_id: UUID) -> str:
    """Rung when a job's state changed: what its host must hear of, whose own frames are no news to it."""
    return f"state.{job_id}"


class Bell:
    """One waiter's end of a doorbell. Use it in the event loop that made it, and close it."""

    def __init__(self, *topics: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._topics: set[str] = set()
        self.listen(*topics)

    def listen(self, *topics: str) -> None:
        """Wait for these topics too."""
        for topic in set(topics) - self._topics:
            self._topics.add(topic)
            _exchange.join(topic, self)

    def close(self) -> None:
        for topic in self._topics:
            _exchange.leave(topic, self)
        self._topics.clear()

    async def wait(self, seconds: float) -> bool:
        """Return at the next ring or after `seconds`; True: it rang. Rings since the last wait count as one."""
        rang = False
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                rang = await self._rung.wait()
        self._rung.clear()
        return rang

    def ring(self) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._rung.set)


def ring(topic: str) -> None:
    """Wake all who wait for `topic`, in this process and in others. From any thread; never blocks, never raises."""
    _exchange.ring(topic)


class _Exchange:
    """Who waits for what in this process, and the thread that talks to the other processes."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bells: dict[str, set[Bell]] = defaultdict(set)
        self._herald: _Herald | None = None

    def join(self, topic: str, bell: Bell) -> None:
        with self._lock:
            first = not self._bells[topic]
            self._bells[topic].add(bell)
            if first and (herald := self._far()) is not None:
                herald.call("group_add", topic)

    def leave(self, topic: str, bell: Bell) -> None:
        with self._lock:
            self._bells[topic].discard(bell)
            if self._bells[topic]:
                return
            del self._bells[topic]
            if (herald := self._far()) is not None:
                herald.call("group_discard", topic)

    def ring(self, topic: str) -> None:
        self.ring_here(topic)
        if (herald := self._far()) is not None:
            herald.call("group_send", topic)

    def ring_here(self, topic: str) -> None:
        with self._lock:
            bells = list(self._bells.get(topic, ()))
        for bell in bells:
            bell.ring()

    def close(self) -> None:
        """Send what waits and end the thread."""
        with self._lock:
            herald, self._herald = self._herald, None
        if herald is not None:
            herald.close()

    def _far(self) -> _Herald | None:
        layer = get_channel_layer()
        if layer is None or isinstance(layer, InMemoryChannelLayer):
            return None
        with self._lock:
            if self._herald is None or not self._herald.thread.is_alive():
                self._herald = _Herald(layer, self)
            return self._herald


class _Herald:
    """A thread with an event loop that owns this process's part of the channel layer."""

    def __init__(self, layer: Any, exchange: _Exchange) -> None:
        self._layer = layer
        self._exchange = exchange
        self._loop = asyncio.new_event_loop()
        self._channel = ""
        self._to_send: set[str] = set()
        self._ready = threading.Event()
        self._ending: asyncio.Event
        self.thread = threading.Thread(target=self._run, name="hints", daemon=True)
        self.thread.start()
        self._ready.wait()

    def call(self, action: str, topic: str) -> None:
        """Schedule one action. A hint that still waits to be sent is not scheduled twice."""
        if action == "group_send":
            if topic in self._to_send:
                return
            self._to_send.add(topic)
        asyncio.run_coroutine_threadsafe(self._do(action, topic), self._loop)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self.thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        self._ending = asyncio.Event()
        self._channel = await self._layer.new_channel("hints")
        listening = asyncio.create_task(self._listen(), name="listening")
        self._ready.set()
        await self._ending.wait()
        sending = asyncio.all_tasks() - {asyncio.current_task(), listening}
        if sending:
            await asyncio.wait(sending, timeout=SEND_SECONDS)
        for _ in range(CANCELS):  # the layer's client swallows a cancellation that meets an answer half-way
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                break
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=0.1)
        if hasattr(self._layer, "close_pools"):
            await self._layer.close_pools()

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._layer.receive(self._channel)
                self._exchange.ring_here(message["topic"])
            except (OSError, RedisError) as error:
                log.warning("the channel layer does not answer; pages look once a second meanwhile: %s", error)
                await asyncio.sleep(1)

    async def _do(self, action: str, topic: str) -> None:
        layer = self._layer
        try:
            if action == "group_send":
                self._to_send.discard(topic)
                await layer.group_send(topic, {"type": "hint", "topic": topic})
            else:
                await getattr(layer, action)(topic, self._channel)
        except (OSError, RedisError) as error:
            log.warning("a hint could not be passed on: %s", error)


_exchange = _Exchange()
