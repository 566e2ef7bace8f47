"""The one outbound WebSocket to the platform: opened again and again, with back-off and jitter."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from labapex.errors import MalformedInput
from labapex.protocol.canonical import Message
from labapex.protocol.frames import MAX_MESSAGE
from labapex.protocol.packing import pack

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds
PING_SECONDS = 10.0  # between two of them, and for an answer: then the connection is dead, though nobody said so
QUEUE = 4096  # messages that wait for the network; the session's window keeps the number far below


def backoff(attempt: int, cap: float = LONGEST_PAUSE) -> float:
    """Seconds to wait before try number `attempt` (from 0): doubling up to `cap`, spread over half its length."""
    longest: float = min(cap, FIRST_PAUSE * 2.0 ** min(attempt, 16))
    return longest * (0.5 + random.random() / 2)  # noqa: S311 (jitter, no secret)


def gateway(platform: str) -> str:
    """The WebSocket's address for a platform's address."""
    return "ws" + platform.removeprefix("http") + "/gateway/worker/"


class Connection:
    """Calls `opened`, then `received` for each message, then `closed`, for each connection.

    `longest_pause`: seconds that may lie between two of them."""

    def __init__(
        self,
        platform: str,
        *,
        opened: Callable[[], None],
        received: Callable[[bytes], None],
        closed: Callable[[], None],
        longest_pause: Callable[[], float],
    ) -> None:
        self._url = gateway(platform)
        self._opened, self._received, self._closed = opened, received, closed
        self._longest_pause = longest_pause
        self._outbox: asyncio.Queue[bytes] | None = None
        self._socket: ClientConnection | None = None

    async def run(self) -> None:
        """For ever; ends by cancellation."""
        attempt = 0
        while True:
            try:
                async with connect(
                    self._url,
                    max_size=MAX_MESSAGE,
                    compression=None,
                    open_timeout=20,
                    close_timeout=2,
                    ping_interval=PING_SECONDS,
                    ping_timeout=PING_SECONDS,
                ) as opened:
                    attempt = await self._talk(opened, attempt)
            except (OSError, InvalidHandshake, TimeoutError, ConnectionClosed) as error:
                log.warning("no connection to %s: %s", self._url, error or type(error).__name__)
            pause = backoff(attempt, min(LONGEST_PAUSE, self._longest_pause()))
            attempt += 1
            await asyncio.sleep(pause)

    def send(self, message: Message) -> None:
        """Send if there is a connection; the session sends again on the next what matters."""
        if self._outbox is None:
            return
        try:
            self._outbox.put_nowait(pack(message))
        except asyncio.QueueFull:
            self.hang_up("the platform does not read")

    def hang_up(self, reason: str) -> None:
        log.warning("closing the connection: %s", reason)
        self._outbox = None
        if self._socket is not None:
            self._socket.transport.abort()

    async def _talk(self, opened: ClientConnection, attempt: int) -> int:
        """One connection. Returns the number of the next attempt: 0 once the platform has spoken sense."""
        self._socket, self._outbox = opened, asyncio.Queue(QUEUE)
        sender = asyncio.create_task(self._send(opened, self._outbox))
        heard = 0
        log.info("connected to %s", self._url)
        self._opened()
        try:
            async for data in opened:
                if isinstance(data, str):
                    raise MalformedInput("a text message; only binary ones are spoken here")
                self._received(data)
                heard += 1
        except MalformedInput as error:
            log.error("the platform broke the protocol: %s", error)
        except ConnectionClosed as error:
            log.info("the connection was cut: %s", error)
        finally:
            self._socket = self._outbox = None
            sender.cancel()
            self._closed()
        return 0 if heard > 1 else attempt

    @staticmethod
    async def _send(opened: ClientConnection, outbox: asyncio.Queue[bytes]) -> None:
        try:
            while True:
                await opened.send(await outbox.get())
        except ConnectionClosed:
            log.debug("the connection was cut while sending")
