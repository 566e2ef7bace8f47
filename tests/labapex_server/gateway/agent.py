"""An agent in memory: a WebSocket client that signs the nonce and speaks the protocol, honestly or not."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from tests.labapex_server.gateway.stage import Host
from websockets.asyncio.client import ClientConnection, connect

from labapex.protocol.canonical import Message
from labapex.protocol.devices import Device
from labapex.protocol.frames import Ack, Data, Greeting, Hello, Nonce, hello_bytes, to_agent
from labapex.protocol.packing import pack
from labapex.sealing import sign

A_CPU = Device(kind="cpu", name="a CPU", note="no NVIDIA driver is installed")
M = TypeVar("M", bound=Message)

PATIENCE = 20.0
"""Seconds after which a test gives up on the platform. No test's verdict depends on it."""


class Agent:
    """`async with Agent(url, host) as agent:` is connected and, unless told otherwise, greeted."""

    def __init__(self, url: str, host: Host, *, leases: tuple[UUID, ...] = (), hello: bool = True) -> None:
        self.url = url.replace("http", "ws", 1) + "/gateway/worker/"
        self.host = host
        self.leases = leases
        self.greeting: Greeting | None = None
        self._hello = hello
        self._socket: ClientConnection
        self._kept: list[Message] = []

    async def __aenter__(self) -> Self:
        self._socket = await connect(self.url, max_size=1 << 20, compression=None)
        if self._hello:
            nonce = await self.expect(Nonce)
            await self.say(self.signed(nonce))
            self.greeting = await self.expect(Greeting)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()

    def signed(self, nonce: Nonce, **changes: Any) -> Hello:
        signature = sign(self.host.private_key, hello_bytes(worker=self.host.worker.pk, nonce=nonce.nonce))
        hello = Hello(worker=self.host.worker.pk, signature=signature, devices=(A_CPU,), leases=self.leases)
        return hello.model_copy(update=changes)

    async def say(self, *messages: Message | bytes | str) -> None:
        for message in messages:
            await self._socket.send(pack(message) if isinstance(message, Message) else message)

    async def hear(self) -> Message:
        """The next message, whatever it is."""
        async with asyncio.timeout(PATIENCE):
            data = await self._socket.recv()
        assert isinstance(data, bytes)
        return to_agent(data)

    async def expect(self, kind: type[M]) -> M:
        """The next message of this kind; others are kept for later."""
        for kept in self._kept:
            if isinstance(kept, kind):
                self._kept.remove(kept)
                return kept
        while not isinstance(message := await self.hear(), kind):
            self._kept.append(message)
        return message

    async def acknowledged(self, frame: Data) -> Ack:
        """Wait until everything up to this frame is committed."""
        while (ack := await self.expect(Ack)).seq < frame.seq:
            pass
        return ack

    async def closed(self) -> int:
        """The code with which the platform closes the connection."""
        async with asyncio.timeout(PATIENCE):
            await self._socket.wait_closed()
        assert self._socket.close_code is not None
        return self._socket.close_code

    def kill(self) -> None:
        """Cut the connection without a word, as a kill -9 does."""
        self._socket.transport.abort()
