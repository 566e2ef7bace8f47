"""How much one connection may ask of the process. Beyond it the socket is not read, and TCP slows the sender down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

UNKNOWN_CONNECTIONS = 200
"""Connections that have not yet said who they are, in one process."""

HELLO_SECONDS = 10.0
MESSAGES_PER_SECOND = 400.0
BYTES_PER_SECOND = 8.0 * 2**20
BURST_SECONDS = 4.0
FRAMES_IN_FLIGHT = 256
BYTES_IN_FLIGHT = 8 << 20
UNSENT_MESSAGES = 4096
"""Answers that wait for an agent that does not read; then it is cut off."""


@dataclass
class Bucket:
    """A token bucket. `take` says how long to wait before the next message is read."""

    rate: float  # a second
    clock: Callable[[], float]
    level: float = 0.0  # what was taken and has not drained yet
    at: float = 0.0

    def take(self, amount: float) -> float:
        """Seconds to wait; 0 while the burst lasts."""
        now = self.clock()
        self.level = max(0.0, self.level - self.rate * (now - self.at)) + amount
        self.at = now
        return max(0.0, self.level - self.rate * BURST_SECONDS) / self.rate


class InFlight:
    """Frames handed to the writer and not answered yet."""

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        self._less = asyncio.Event()

    def add(self, size: int) -> None:
        self.frames += 1
        self.bytes += size

    def done(self, size: int) -> None:
        self.frames -= 1
        self.bytes -= size
        self._less.set()

    async def room(self) -> None:
        """Wait until another frame may be handed in."""
        while self.frames >= FRAMES_IN_FLIGHT or self.bytes >= BYTES_IN_FLIGHT:
            await self._change()

    async def empty(self) -> None:
        """Wait until every frame is answered."""
        while self.frames:
            await self._change()

    async def _change(self) -> None:
        self._less.clear()
        await self._less.wait()
