"""A line between one host and the platform that knows the messages of the log, and does to them what it is told.

TCP would repair what happens to its packets, so faults are done to whole WebSocket messages: one is flipped in a bit, sent
twice, held behind the next one, or kept back for a while; or the connection is cut. Messages that are not of the log pass as
they are (TLS guards them where it matters; the log has its own hashes and is to need no other). What the platform
acknowledged is written down as it left the platform.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from tests.chaos.schedule import Fault, Kind

from labapex.errors import MalformedInput
from labapex.protocol.frames import Ack, Data, Nack, from_agent, to_agent

_T = TypeVar("_T")
_SOCKET = b"GET /gateway/worker/ "
_BINARY = 0x2
HOLD_SECONDS = 0.5


@dataclass
class _Frame:
    """One WebSocket frame as it is on the wire. `mask` is empty where it has none."""

    head: int
    mask: bytes
    payload: bytes  # unmasked

    @property
    def raw(self) -> bytes:
        size, masked = len(self.payload), 0x80 if self.mask else 0
        if size < 126:
            length = bytes([masked | size])
        elif size < 1 << 16:
            length = bytes([masked | 126]) + size.to_bytes(2, "big")
        else:
            length = bytes([masked | 127]) + size.to_bytes(8, "big")
        return bytes([self.head]) + length + self.mask + _xor(self.payload, self.mask)


def _xor(data: bytes, mask: bytes) -> bytes:
    if not mask:
        return data
    whole = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")).to_bytes(len(data), "big")


async def _read(reader: asyncio.StreamReader) -> _Frame:
    head, size = await reader.readexactly(2)
    masked, size = size & 0x80, size & 0x7F
    if size >= 126:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    mask = await reader.readexactly(4) if masked else b""
    return _Frame(head, mask, _xor(await reader.readexactly(size), mask))


@dataclass
class Line:
    """A port of this machine that leads to the platform's. `do` from any thread."""

    target: int
    applied: Counter[Kind] = field(default_factory=Counter)
    acknowledged: dict[tuple[UUID, int], bytes] = field(default_factory=dict)  # by lease and seq: the head
    port: int = 0

    def __post_init__(self) -> None:
        self._due: dict[bool, deque[Fault]] = {True: deque(), False: deque()}
        self._ends: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def do(self, fault: Fault) -> None:
        self._loop.call_soon_threadsafe(self._do, fault)

    def calm(self) -> None:
        """Do nothing more of what was told and not done."""

        def forget() -> None:
            for due in self._due.values():
                due.clear()

        self._loop.call_soon_threadsafe(forget)

    @contextmanager
    def strung(self) -> Iterator[Line]:
        self._thread.start()
        try:
            server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
            self.port = server.sockets[0].getsockname()[1]
            yield self
            server.close()
            self._call(_cancel_all())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _do(self, fault: Fault) -> None:
        if fault.kind is Kind.CUT:
            self.applied[fault.kind] += bool(self._ends)
            for end in list(self._ends):
                end.transport.abort()
        else:
            self._due[fault.up].append(fault)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        asked = b""
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                asked = await reader.readuntil(b"\r\n\r\n")
                back.write(asked)
                if asked.startswith(_SOCKET):
                    writer.write(await there.readuntil(b"\r\n\r\n"))
                    self._ends |= {writer, back}
                    await _both(self._carry(reader, back, up=True), self._carry(there, writer, up=False))
                else:
                    await _both(_pipe(reader, back), _pipe(there, writer))
        finally:
            self._ends -= {writer, back}
            for end in (writer, back):
                end.transport.abort() if asked.startswith(_SOCKET) else end.close()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, up: bool) -> None:
        held = b""
        while True:
            reading = asyncio.create_task(_read(source))
            if held and not await _within(HOLD_SECONDS, reading):
                target.write(held)  # nothing came that it could be held behind
                held = b""
            frame = await reading
            sent = frame.raw
            if self._of_the_log(frame, up):
                fault = self._due[up].popleft() if self._due[up] else None
                if fault is not None:
                    self.applied[fault.kind] += 1
                    if fault.kind is Kind.FLIP:
                        sent = _flipped(frame, fault.draw).raw
                    elif fault.kind is Kind.DOUBLE:
                        sent += sent
                    elif fault.kind is Kind.DELAY:
                        await asyncio.sleep(fault.draw % 1000 / 1000)
                    elif not held:
                        held = sent
                        continue
            target.write(sent + held)
            held = b""
            await target.drain()

    def _of_the_log(self, frame: _Frame, up: bool) -> bool:
        if frame.head & 0x0F != _BINARY:
            return False
        try:
            message = from_agent(frame.payload) if up else to_agent(frame.payload)
        except MalformedInput:
            return False
        if isinstance(message, Ack):
            self.acknowledged[message.lease, message.seq] = message.head
        return isinstance(message, Data | Ack | Nack)


def _flipped(frame: _Frame, draw: int) -> _Frame:
    bit = draw % (8 * len(frame.payload))
    payload = bytearray(frame.payload)
    payload[bit // 8] ^= 1 << bit % 8
    return _Frame(frame.head, frame.mask, bytes(payload))


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(1 << 16):
        target.write(data)
        await target.drain()
    target.write_eof()


async def _within(seconds: float, reading: asyncio.Task[_Frame]) -> bool:
    try:
        return bool((await asyncio.wait([reading], timeout=seconds))[0])
    except asyncio.CancelledError:
        reading.cancel()
        raise


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _both(*halves: Coroutine[Any, Any, None]) -> None:
    """Until both have ended, or one has broken."""
    tasks = [asyncio.create_task(half) for half in halves]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
