"""The line between a host and the platform, as TCP sees it: it can be cut, fall silent, or leave dead connections behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

_T = TypeVar("_T")


class State(Enum):
    WHOLE = "whole"
    CUT = "cut"  # connections are reset and refused
    SILENT = "silent"  # connections stand and are made, and nothing passes


class Wire:
    """A port of this machine that leads to another one."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._state = State.WHOLE
        self._lines: set[_Line] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set(self, state: State) -> None:
        """What the wire is from now on, also to connections that stand."""
        self._call(self._set(state))

    def forget(self) -> None:
        """Nothing ever passes again through the connections that stand, and neither end is told."""
        self._call(self._forget())

    @contextmanager
    def strung(self) -> Iterator[Wire]:
        self._thread.start()
        try:
            server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
            self.port = server.sockets[0].getsockname()[1]
            yield self
            server.close()
            self._call(self._set(State.CUT))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _set(self, state: State) -> None:
        self._state = state
        for line in list(self._lines):
            line.set(state)

    async def _forget(self) -> None:
        for line in list(self._lines):
            line.dead = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._state is State.CUT:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(writer, there[1])
        line.set(self._state)
        self._lines.add(line)
        try:
            await asyncio.gather(line.carry(reader, there[1]), line.carry(there[0], writer))
        except OSError:
            line.set(State.CUT)
        finally:
            self._lines.discard(line)
            for end in (writer, there[1]):
                end.close()


class _Line:
    """One connection, with both of its halves."""

    def __init__(self, *ends: asyncio.StreamWriter) -> None:
        self._ends = ends
        self._passes = asyncio.Event()
        self.dead = False

    def set(self, state: State) -> None:
        if state is State.CUT:
            self._passes.set()
            for end in self._ends:
                end.transport.abort()
        elif state is State.SILENT:
            self._passes.clear()
        else:
            self._passes.set()

    async def carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            await self._passes.wait()
            if not self.dead:
                target.write(data)
                await target.drain()
        if not self.dead:
            target.write_eof()
