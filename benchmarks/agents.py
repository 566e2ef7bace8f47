"""Many agents in one process: each with a connection, a log to deliver, and a clock on its acknowledgements."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from labapex.protocol.frames import Ack, Greeting, Hello, Nack, Nonce, Refusal, hello_bytes, to_agent
from labapex.protocol.packing import pack
from labapex.sealing import sign

if TYPE_CHECKING:
    from tests.labapex_server.gateway.stage import Run

AT_ONCE = 50
"""Handshakes under way: a process lets in so many strangers at a time."""


class Agent:
    """One worker's connection and the frames of its one lease, packed beforehand."""

    def __init__(self, url: str, run: Run) -> None:
        self.url = url.replace("http", "ws", 1) + "/gateway/worker/"
        self.run = run
        self.messages = [pack(frame) for frame in run.executable.frames]
        self.latencies: list[float] = []  # seconds from sending a frame to its acknowledgement
        self._sent: deque[tuple[int, float]] = deque()
        self._room = asyncio.Event()
        self._over: asyncio.Future[None]

    async def connect(self) -> None:
        from websockets.asyncio.client import connect

        self._socket = await connect(self.url, max_size=1 << 20, compression=None, ping_interval=None)
        nonce = to_agent(await self._socket.recv())  # type: ignore[arg-type]
        assert isinstance(nonce, Nonce)
        worker = self.run.host.worker.pk
        signature = sign(self.run.host.private_key, hello_bytes(worker=worker, nonce=nonce.nonce))
        await self._socket.send(pack(Hello(worker=worker, signature=signature, leases=(self.run.lease.pk,))))
        while not isinstance(to_agent(await self._socket.recv()), Greeting):  # type: ignore[arg-type]
            pass

    async def say(self, message: bytes) -> None:
        await self._socket.send(message)

    async def beat(self, heartbeat: bytes, every: float = 5.0) -> None:
        """Say so now and then, beginning some time within the interval, and read whatever is said, until cancelled."""
        await asyncio.sleep(random.random() * every)
        while True:
            await self._socket.send(heartbeat)
            with suppress(TimeoutError):
                async with asyncio.timeout(every):
                    while True:
                        await self._socket.recv()

    async def close(self) -> None:
        await self._socket.close()

    async def deliver(self, *, window: int = 64, start: int = 0, stop: int | None = None, every: float = 0) -> None:
        """Send frames `start` to `stop` with at most `window` unacknowledged, one each `every` seconds; return when all are
        acknowledged."""
        last = (len(self.messages) if stop is None else stop) - 1
        hearing = asyncio.create_task(self._hear(last))
        begin = time.perf_counter()
        for number in range(start, last + 1):
            while len(self._sent) >= window:
                self._room.clear()
                await self._room.wait()
            if every:
                await asyncio.sleep(begin + (number - start) * every - time.perf_counter())
            self._sent.append((number, time.perf_counter()))
            await self._socket.send(self.messages[number])
        await hearing

    async def _hear(self, last: int) -> None:
        seq = -1
        while seq < last:
            message = to_agent(await self._socket.recv())  # type: ignore[arg-type]
            if isinstance(message, Nack | Refusal):
                raise SystemExit(f"the platform says {message}")
            if not isinstance(message, Ack):
                continue  # a state that it would like to have
            now, seq = time.perf_counter(), message.seq
            while self._sent and self._sent[0][0] <= seq:
                self.latencies.append(now - self._sent.popleft()[1])
            self._room.set()


@asynccontextmanager
async def connected(url: str, runs: Sequence[Run]) -> AsyncIterator[list[Agent]]:
    agents = [Agent(url, run) for run in runs]
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(agent: Agent) -> None:
        async with turn:
            await agent.connect()

    await asyncio.gather(*map(one, agents))
    try:
        yield agents
    finally:
        await asyncio.gather(*(agent.close() for agent in agents), return_exceptions=True)


def percentile(values: list[float], share: float) -> float:
    """Nearest rank; in the unit of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
