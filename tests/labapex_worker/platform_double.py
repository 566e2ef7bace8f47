"""The platform as a worker sees it, in memory: the rules of the wire and nothing else.

`Books` is what it holds and how it answers one message; the state machine test feeds it directly. `Gateway` puts it
behind a real WebSocket and HTTP server, for real daemons."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from labapex import sealing
from labapex.protocol.api import Earning, Earnings, EarningsRequest, EnrolReply, EnrolRequest, earnings_bytes
from labapex.protocol.canonical import Message
from labapex.protocol.devices import Device, Observation
from labapex.protocol.frames import (
    Ack,
    Data,
    Failed,
    Fin,
    FinAck,
    Grant,
    Greeting,
    Heartbeat,
    Hello,
    Idle,
    KeyRelease,
    KeyRequest,
    Nack,
    Nonce,
    Observed,
    Open,
    OpenChunks,
    OpenStates,
    Paused,
    Ready,
    Refusal,
    Released,
    TrialAnswer,
    TrialPart,
    TrialReady,
    Welcome,
    fin_bytes,
    frame_hash,
    from_agent,
    genesis,
    hello_bytes,
)
from labapex.protocol.limits import Limits
from labapex.protocol.manifest import Manifest, ReleasedKeys
from labapex.protocol.packing import pack


@dataclass
class Held:
    """One lease as the platform knows it."""

    grant: Grant
    manifest: Manifest | None = None
    run_key: bytes = field(default_factory=lambda: os.urandom(32))
    frames: list[Data] = field(default_factory=list)
    key_request: KeyRequest | None = None
    release: KeyRelease | None = None
    fin: Fin | None = None
    failed: str | None = None
    declined: bool = False
    observations: list[Observation] = field(default_factory=list)
    over: bool = False
    challenge: tuple[int, ...] = ()
    chunk: int | None = None  # the number of the chunk of those states that is asked for first
    chunks: bytes | None = None
    states: dict[int, bytes] = field(default_factory=dict)
    deaf: bool = False  # its log is not answered
    unwanted: bool = False  # its log is refused

    @property
    def head(self) -> bytes:
        return self.frames[-1].hash if self.frames else genesis(self.grant.lease)

    @property
    def records(self) -> int:
        return sum(frame.n for frame in self.frames)


class Books:
    """`hear` is one message from the agent; what it returns is sent back."""

    def __init__(self) -> None:
        self.leases: dict[UUID, Held] = {}
        self.waiting: list[Held] = []
        self.ready = 0
        self.paused = ""  # the reason that the worker gave last
        self.price: int | None = None
        self.room: Limits | None = None
        self.heartbeats: list[Heartbeat] = []
        self.trial: list[TrialReady | TrialAnswer | TrialPart] = []

    def greet(self) -> list[Message]:
        live = tuple(lease for lease, held in self.leases.items() if not held.over)
        again = [challenge for held in self.leases.values() for challenge in self._challenge(held)]
        return [Greeting(heartbeat_seconds=1.0, leases=live), *again]

    def reconcile(self, named: Iterable[UUID]) -> None:
        """A grant that the worker does not name never arrived: it is given again."""
        for lease in set(self.leases) - set(named):
            held = self.leases[lease]
            if held.key_request is None and not held.over:
                self.waiting.append(self.leases.pop(lease))

    def hear(self, data: bytes) -> list[Message]:
        message = from_agent(data)
        if isinstance(message, Ready):
            self.ready, self.paused, self.price, self.room = 1, "", message.price_per_hour, message.room
            return self.give()
        if isinstance(message, Paused):
            self.ready, self.paused = 0, message.reason
            return []
        if isinstance(message, TrialReady | TrialAnswer | TrialPart):
            self.trial.append(message)
            return []
        if isinstance(message, Heartbeat):
            self.heartbeats.append(message)
            return []
        assert not isinstance(message, Hello)
        held = self.leases.get(message.lease)
        if held is None or held.over:
            return [Released(lease=message.lease, reason="over")]
        if held.deaf and isinstance(message, Open | Data | Fin):
            return []
        match message:
            case Observed():
                held.observations += message.readings
                return []
            case Open():
                return [Welcome(lease=message.lease, seq=len(held.frames), next=held.records, head=held.head)]
            case Data() if held.unwanted:
                return [Refusal(code="body", message="does not open", fatal=True, lease=message.lease)]
            case Data():
                return [self._commit(held, message)]
            case Fin():
                return self._finish(held, message)
            case KeyRequest():
                return self._release(held, message)
            case Failed():
                held.failed, held.declined = message.reason, message.declined
                held.over = True
                return [Released(lease=message.lease, reason="failed")]

    def give(self) -> list[Message]:
        if not self.waiting:
            return [Idle()]
        if not self.ready:
            return []
        self.ready -= 1
        held = self.waiting.pop(0)
        self.leases[held.grant.lease] = held
        return [held.grant]

    def _commit(self, held: Held, frame: Data) -> Message:
        if frame.seq < len(held.frames):
            assert frame == held.frames[frame.seq], "a frame was sent again with other bytes"
            return Ack(lease=frame.lease, seq=len(held.frames) - 1, head=held.head)
        if frame.seq > len(held.frames):
            return Nack(lease=frame.lease, expected=len(held.frames))
        assert frame.prev == held.head
        assert frame.first == held.records
        assert frame.hash == frame_hash(
            lease=frame.lease, seq=frame.seq, first=frame.first, n=frame.n, prev=frame.prev, payload=frame.payload
        )
        held.frames.append(frame)
        return Ack(lease=frame.lease, seq=frame.seq, head=frame.hash)

    def _finish(self, held: Held, fin: Fin) -> list[Message]:
        if fin.seq > len(held.frames):
            return [Nack(lease=fin.lease, expected=len(held.frames))]
        assert (fin.seq, fin.total, fin.head) == (len(held.frames), held.records, held.head)
        if held.manifest is not None and held.key_request is not None:
            text = fin_bytes(lease=fin.lease, seq=fin.seq, total=fin.total, head=fin.head)
            sealing.verify(held.key_request.signing_key, text, fin.signature)
        held.fin = fin
        return [FinAck(lease=fin.lease), *self._challenge(held)]

    def show(self, held: Held, what: str, number: int, body: bytes) -> list[Message]:
        """Something was handed in; what is asked for next."""
        if what == "chunks":
            held.chunks = body
            return self._challenge(held)
        held.states[number] = body
        return []

    def _challenge(self, held: Held) -> list[Message]:
        if held.over or held.fin is None or not held.challenge or len(held.states) == len(held.challenge):
            return []
        if held.chunk is not None and held.chunks is None:
            asked = {"number": held.chunk, "indices": held.challenge, "deadline": time.time() + 60}
            return [OpenChunks(lease=held.grant.lease, **asked)]
        return [OpenStates(lease=held.grant.lease, indices=held.challenge, deadline=time.time() + 60)]

    def _release(self, held: Held, request: KeyRequest) -> list[Message]:
        if held.key_request is None:
            held.key_request = request
            sealed = b"sealed"
            if held.manifest is not None:
                keys = ReleasedKeys(content_key=bytes(32), run_key=held.run_key)
                sealed = sealing.seal_release(request.hpke_key, manifest=held.manifest, keys=keys)
            held.release = KeyRelease(lease=request.lease, sealed=sealed)
        assert held.key_request == request, "keys were asked for twice with different keys"
        assert held.release is not None
        return [held.release]


Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Transmit = Callable[[dict[str, Any]], Awaitable[None]]


class Gateway:
    """`Books` on a port of 127.0.0.1. `changed` is set after each message and each request."""

    def __init__(self) -> None:
        self.books = Books()
        self.worker = uuid4()
        self.agent: bytes | None = None  # statement of the agent that is released
        self.agent_wheel = b""
        self.agents_sent = 0
        self.trust = b""  # what is answered to who asks whose signatures count
        self.public_key = b""
        self.earned: list[Earning] = []
        self.executables: dict[UUID, bytes] = {}
        self.wheels: dict[str, bytes] = {}
        self.cut_download_at: int | None = None
        self.ranges: list[str | None] = []
        self.connections = 0
        self.devices: tuple[Device, ...] = ()
        self.lacks_torch = False
        self.url = ""
        self._changed = asyncio.Condition()
        self._transmits: dict[int, Transmit] = {}
        self._news: list[Message] = []  # what a request gave cause to say

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Gateway]:
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            host="127.0.0.1",
            port=0,
            lifespan="off",
            log_level="error",
            ws="websockets-sansio",
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.should_exit = server.force_exit = True
            await task

    async def until(self, true: Callable[[], object], seconds: float = 60) -> None:
        """Wait until something holds; it is looked at after each thing that happens here."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: bool(true()))

    async def offer(self, held: Held) -> None:
        self.books.waiting.append(held)
        await self._tell_all(self.books.give())

    async def release(self, lease: UUID) -> None:
        self.books.leases[lease].over = True
        await self._tell_all([Released(lease=lease, reason="settled")])

    async def cut(self) -> None:
        """Close all connections."""
        for transmit in list(self._transmits.values()):
            await transmit({"type": "websocket.close", "code": 1012})

    async def ask(self, message: Message) -> Message:
        """Say something about a speed trial, and wait for the next word of it."""
        before = len(self.books.trial)
        await self._tell_all([message])
        await self.until(lambda: len(self.books.trial) > before)
        return self.books.trial[before]

    async def _tell_all(self, messages: list[Message]) -> None:
        for transmit in self._transmits.values():
            for message in messages:
                await transmit({"type": "websocket.send", "bytes": pack(message)})

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _app(self, scope: Scope, receive: Receive, transmit: Transmit) -> None:
        await (self._talk if scope["type"] == "websocket" else self._answer)(scope, receive, transmit)
        await self._note()

    async def _talk(self, scope: Scope, receive: Receive, transmit: Transmit) -> None:
        assert scope["path"] == "/gateway/worker/"
        await receive()
        await transmit({"type": "websocket.accept"})
        nonce = os.urandom(32)
        await transmit({"type": "websocket.send", "bytes": pack(Nonce(nonce=nonce))})
        first = await receive()
        if first["type"] != "websocket.receive":
            return
        hello = from_agent(first["bytes"])
        assert isinstance(hello, Hello)
        Ed25519PublicKey.from_public_bytes(self.public_key).verify(
            hello.signature, hello_bytes(worker=hello.worker, nonce=nonce)
        )
        self.connections += 1
        self.devices, self.lacks_torch = hello.devices, hello.lacks_torch
        self.books.ready = 0
        self.books.reconcile(hello.leases)
        self._transmits[id(scope)] = transmit
        try:
            for message in self.books.greet():
                await transmit({"type": "websocket.send", "bytes": pack(message)})
            while (event := await receive())["type"] == "websocket.receive":
                for message in self.books.hear(event["bytes"]):
                    await transmit({"type": "websocket.send", "bytes": pack(message)})
                await self._note()
        finally:
            del self._transmits[id(scope)]

    async def _answer(self, scope: Scope, receive: Receive, transmit: Transmit) -> None:
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return  # it was not handed in whole
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, extra, answer = self._http(scope["method"], scope["path"], headers, body)
        news, self._news = self._news, []
        await self._tell_all(news)
        await transmit({"type": "http.response.start", "status": status, "headers": extra})
        for start in range(0, len(answer), 4096):
            if self.cut_download_at is not None and start >= self.cut_download_at:
                self.cut_download_at = None
                raise ConnectionAbortedError("cut on purpose")
            await transmit({"type": "http.response.body", "body": answer[start : start + 4096], "more_body": True})
        await transmit({"type": "http.response.body", "body": b""})

    def _http(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if (method, path) == ("GET", "/gateway/releases/agent"):
            return (404, [], b"") if self.agent is None else (200, [], self.agent)
        if method == "GET" and path.startswith("/gateway/releases/agent/"):
            self.agents_sent += 1
            return 200, [], self.agent_wheel
        if (method, path) == ("GET", "/gateway/trust/"):
            return 200, [], self.trust
        if (method, path) == ("POST", "/gateway/enrol/"):
            request = EnrolRequest.model_validate_json(body)
            if request.code != "good":
                return 403, [], json.dumps({"detail": "this code is not valid"}).encode()
            self.public_key = request.public_key
            reply = EnrolReply(worker=self.worker)
            return 200, [], reply.model_dump_json().encode()
        if (method, path) == ("POST", "/gateway/earnings/"):
            question = EarningsRequest.model_validate_json(body)
            text = earnings_bytes(worker=question.worker, at=question.at, skip=question.skip)
            sealing.verify(self.public_key, text, question.signature)
            part = tuple(self.earned[question.skip : question.skip + 2])
            return 200, [], Earnings(results=part, total=len(self.earned)).model_dump_json().encode()
        _, _, _, lease, what, *rest = path.split("/")
        held = self.books.leases[UUID(lease)]
        if headers.get("authorization") != f"Bearer {held.grant.token}":
            return 401, [], b""
        if method == "GET" and what == "executable":
            self.ranges.append(headers.get("range"))
            data = self.executables[held.grant.lease]
            start = int(headers["range"].removeprefix("bytes=").removesuffix("-")) if "range" in headers else 0
            extra = [(b"content-length", str(len(data) - start).encode())]
            if start:
                extra.append((b"content-range", f"bytes {start}-{len(data) - 1}/{len(data)}".encode()))
            return (206 if start else 200), extra, data[start:]
        if method == "GET" and what == "wheels":
            return 200, [], self.wheels[rest[0]]
        assert method == "PUT"
        self._news += self.books.show(held, what, int(rest[0]), body)
        return 200, [(b"content-length", b"0")], b""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the test runner keeps its own
