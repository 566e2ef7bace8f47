"""One agent's connection: admit it, pass its frames to the writer, tell it what it must know.

Three tasks share it. The reader takes message after message and waits where too much is in flight. The sender writes
what is to be said; of acknowledgements, which are cumulative, only the last one of a lease. The watcher looks, at a
ring or once a second, whether there is a lease to grant, a challenge to pass on, a lease that is over.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django.core.cache import cache

from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.canonical import Message
from labapex.protocol.frames import (
    PROTOCOL_VERSION,
    Ack,
    Data,
    Failed,
    Fin,
    Greeting,
    Heartbeat,
    Hello,
    Idle,
    KeyRequest,
    Nack,
    Nonce,
    Observed,
    Open,
    Paused,
    Ready,
    Refusal,
    Stop,
    TrialAnswer,
    TrialPart,
    TrialReady,
    from_agent,
)
from labapex.protocol.packing import pack
from labapex_server.gateway import books
from labapex_server.gateway.limits import (
    BYTES_PER_SECOND,
    HELLO_SECONDS,
    MESSAGES_PER_SECOND,
    UNKNOWN_CONNECTIONS,
    UNSENT_MESSAGES,
    Bucket,
    InFlight,
)
from labapex_server.gateway.trial import Failed as TrialFailed
from labapex_server.gateway.trial import Trial
from labapex_server.lib import logs, metrics
from labapex_server.lib.errors import Refused
from labapex_server.marketplace.services import Queue
from labapex_server.telemetry import hints
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.ingest import Refuse
from labapex_server.telemetry.offload import Gathered, offload
from labapex_server.telemetry.services import LogRefused
from labapex_server.telemetry.writer import Answer, Submission, TryLater
from labapex_server.workers import services as workers
from labapex_server.workers import speed
from labapex_server.workers.models import Worker

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WATCH_SECONDS = 1.0
ASK_SECONDS = 15.0

# Close codes (RFC 6455: 4000 to 4999 are the application's)
MALFORMED, REFUSED, SILENT, FENCED, BUSY, TRY_LATER = 4400, 4401, 4408, 4409, 4429, 1013

_news = Gathered(books.news)
_beat = Gathered(books.beat)
_queue = Gathered(books.queue)
_connected: dict[UUID, Connection] = {}
_unknown = 0


class Closed(Exception):
    """This side ends the connection."""

    def __init__(self, code: int, refusal: Refusal | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.refusal = refusal


class Gone(Exception):
    """The other side ended it."""


class Connection:
    """From the accepted socket to its end; `run` returns then."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._raw_send = send
        self._loop = asyncio.get_running_loop()
        self._id = str(uuid4())
        self._messages = Bucket(MESSAGES_PER_SECOND, self._loop.time)
        self._bytes = Bucket(BYTES_PER_SECOND, self._loop.time)
        self._in_flight = InFlight()
        self._acks: dict[UUID, Ack] = {}
        self._outbox: list[Message] = []
        self._to_send = asyncio.Event()
        self._wants_work = False
        self._said_idle = False
        self._trial: Trial | None = None
        self._in_hand: set[UUID] = set()
        self._stopped: set[UUID] = set()  # leases that it was told to stop
        self._states_at = 0.0
        self._queue: Queue | None = None  # as of the last look for work
        self._ask_at = 0.0
        self._challenged: set[tuple[UUID, int]] = set()  # lease and round of what it was told to show
        self._worker: Worker
        self._bell: hints.Bell
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        try:
            await self._introduce()
            self._bell = hints.Bell(hints.QUEUE)
            try:
                async with asyncio.TaskGroup() as self._tasks:
                    for task in (self._read(), self._write(), self._watch()):
                        self._tasks.create_task(task)
            finally:
                self._bell.close()
                if _connected.get(self._worker.pk) is self:
                    del _connected[self._worker.pk]
        except* Closed as ends:
            end = _first(ends)
            if isinstance(end, Closed):
                if end.refusal is not None:
                    await self._say(end.refusal)
                await self._raw_send({"type": "websocket.close", "code": end.code})
        except* Gone:
            pass  # the agent hung up; it comes again

    # -- who is there --------------------------------------------------------------------------------------------------

    async def _introduce(self) -> None:
        global _unknown
        if _unknown >= UNKNOWN_CONNECTIONS:
            raise Closed(BUSY)
        _unknown += 1
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await self._hello()
        except TimeoutError:
            raise Closed(SILENT) from None
        finally:
            _unknown -= 1
        older = _connected.get(self._worker.pk)
        if older is not None:
            older.fence()
        _connected[self._worker.pk] = self
        await cache.aset(self._cache_key, self._id, timeout=24 * 3600)
        leases = await offload(books.arrive, self._worker, hello)
        self._in_hand = {*leases, *hello.leases}
        log.info("worker %s connected with %d leases", self._worker.pk, len(hello.leases))
        await self._say(Greeting(heartbeat_seconds=books.heartbeat_seconds(), leases=tuple(leases)))

    async def _hello(self) -> Hello:
        nonce = secrets.token_bytes(32)
        await self._say(Nonce(nonce=nonce))
        hello = await self._next()
        if not isinstance(hello, Hello):
            raise Closed(MALFORMED, _refusal("protocol", "the first message must be Hello", fatal=True))
        if hello.version != PROTOCOL_VERSION:
            text = f"this platform speaks version {PROTOCOL_VERSION} of the protocol; update the agent"
            raise Closed(REFUSED, _refusal("version", text, fatal=True))
        worker = await offload(books.admit, hello, nonce)
        if worker is None:
            text = "this worker is not enrolled here, or it is banned; enrol it with a code from the portal"
            raise Closed(REFUSED, _refusal("unknown-worker", text, fatal=True))
        self._worker = worker
        logs.about(worker=worker.pk)
        return hello

    def fence(self) -> None:
        """A newer connection of the same worker counts; end this one."""
        self._abort(Closed(FENCED, _refusal("fenced", "this worker connected again elsewhere", fatal=True)))

    @property
    def _cache_key(self) -> str:
        return f"gateway.connection.{self._worker.pk}"

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            try:
                async with asyncio.timeout(books.silence_seconds()):
                    message = await self._next()
            except TimeoutError:
                raise Closed(SILENT) from None
            lease = getattr(message, "lease", None)
            try:
                if isinstance(message, Data):
                    await self._data(message)
                else:
                    with logs.on(**({} if lease is None else {"lease": lease})):
                        await self._handle(message)
            except LogRefused as error:
                await self._breach(lease, error)
            except (Refused, MalformedInput) as error:
                self._post(_refusal(getattr(error, "code", "malformed"), str(error), lease=lease))

    async def _next(self) -> Message:
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            raise Gone
        data = event.get("bytes")
        if data is None:
            raise Closed(MALFORMED, _refusal("malformed", "messages are binary", fatal=True))
        pause = max(self._messages.take(1), self._bytes.take(len(data)))
        if pause:
            metrics.HELD_BACK_SECONDS.labels("rate").inc(pause)
            await asyncio.sleep(pause)
        try:
            return from_agent(data)
        except MalformedInput as error:
            raise Closed(MALFORMED, _refusal("malformed", str(error)[:500], fatal=True)) from None

    async def _data(self, data: Data) -> None:
        began = self._loop.time()
        await self._in_flight.room()
        metrics.HELD_BACK_SECONDS.labels("in-flight").inc(self._loop.time() - began)
        self._in_flight.add(len(data.payload))
        telemetry.submit(Submission(self._worker.pk, data, partial(self._committed, data)))

    def _committed(self, data: Data, answer: Answer) -> None:
        """In the writer's thread."""
        with suppress(RuntimeError):  # the loop is closed: the process ends
            self._loop.call_soon_threadsafe(self._answered, data, answer)

    def _answered(self, data: Data, answer: Answer) -> None:
        self._in_flight.done(len(data.payload))
        match answer:
            case Ack():
                self._acks[data.lease] = answer
                self._to_send.set()
            case Nack():
                self._post(answer)
            case Refuse(code=code, message=message):
                self._spawn(self._breach(data.lease, LogRefused(code, message)))
            case TryLater():
                self._abort(Closed(TRY_LATER))

    async def _handle(self, message: Message) -> None:
        worker = self._worker
        match message:
            case Open():
                self._post(await offload(telemetry.welcome, worker.pk, message))
            case Fin():
                await self._in_flight.empty()
                self._post(await offload(telemetry.finish, worker.pk, message))
                self._bell.ring()
            case Heartbeat():
                await self._heartbeat(message)
            case Ready():
                await offload(workers.ready, worker, message.price_per_hour, message.room, message.hours)
                self._wants_work, self._said_idle = True, False
                self._bell.ring()
            case Paused():
                self._wants_work = False
                await offload(workers.paused, worker, message.reason)
            case KeyRequest():
                self._post(await offload(books.release_keys, worker, message))
            case TrialReady() | TrialAnswer() | TrialPart():
                await self._measured(message)
            case Observed():
                await offload(telemetry.observe, worker.pk, message)
            case Failed():
                await offload(books.fail, worker, message.lease, message.reason, message.declined)
                self._in_hand.add(message.lease)
                self._bell.ring()
            case _:
                raise Closed(MALFORMED, _refusal("protocol", "this message is out of place", fatal=True))

    async def _heartbeat(self, message: Heartbeat) -> None:
        if await cache.aget(self._cache_key) not in (self._id, None):
            raise Closed(FENCED, _refusal("fenced", "this worker connected again elsewhere", fatal=True))
        if not await _beat((self._worker.pk, message.leases)):
            raise Closed(REFUSED, _refusal("unknown-worker", "this worker is banned", fatal=True))
        self._in_hand.update(message.leases)

    async def _breach(self, lease: UUID | None, error: LogRefused) -> None:
        """A log that breaks its contract ends its lease; one that is not this worker's is only refused."""
        if error.breach and lease is not None:
            log.warning("lease %s of worker %s: the log was refused: %s", lease, self._worker.pk, error)
            await offload(books.fail, self._worker, lease, f"the log was refused: {error} ({error.code})")
            self._bell.ring()
        elif lease is not None and await offload(books.is_stopped, self._worker, lease):
            self._stop(lease)  # its frames were on their way
            return
        self._post(_refusal(error.code, str(error), lease=lease))

    # -- watching ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        rang = True
        while True:
            if self._trial is not None and self._trial.expired():
                await self._end_trial("it did not answer in time")
            if self._wants_work and self._trial is None and await self._worth_asking(rang):
                asked = await offload(speed.due, self._worker)
                if asked is None:
                    await self._offer()
                else:
                    self._trial = Trial(asked, self._loop.time)
                    self._post(self._trial.begin())
            if self._in_hand:
                await self._news()
            rang = await self._bell.wait(WATCH_SECONDS)

    async def _worth_asking(self, rang: bool) -> bool:
        """Whether there may be work, or a trial, that there was not at the last look. What time alone decides is looked at
        once in a while: to look costs more than to keep an idle worker's connection."""
        queue, now = await _queue(None), self._loop.time()
        if not rang and queue == self._queue and now < self._ask_at:
            return False
        self._queue, self._ask_at = queue, now + ASK_SECONDS
        return True

    # -- the speed trial, before a job ---------------------------------------------------------------------------------

    async def _measured(self, message: TrialReady | TrialAnswer | TrialPart) -> None:
        trial = self._trial
        if trial is None or trial.id != message.trial:
            return  # of a trial that is over
        try:
            match message:
                case TrialReady():
                    self._post(trial.on_ready(message))
                case TrialAnswer():
                    self._post(trial.on_answer(message))
                case TrialPart():
                    shown = trial.on_part(message)
                    if shown is not None:
                        problem = await offload(speed.check, shown)
                        if problem is None:
                            await offload(speed.passed, self._worker, shown)
                        await self._end_trial(problem)
        except TrialFailed as failure:
            await self._end_trial(str(failure))

    async def _end_trial(self, problem: str | None) -> None:
        trial, self._trial = self._trial, None
        if trial is not None:
            if problem is not None:
                await offload(speed.failed, self._worker, trial.plan, problem)
            self._post(trial.over())
            self._bell.ring()

    async def _offer(self) -> None:
        try:
            grant = await offload(books.grant, self._worker)
        except LabApexError as error:  # the operator's matter: a runner that was not built, a blob that is gone
            log.error("no lease for worker %s: %s", self._worker.pk, error)
            grant = None
        if grant is not None:
            self._wants_work = False
            self._in_hand.add(grant.lease)
            self._post(grant)
        elif not self._said_idle:
            self._said_idle = True
            self._post(Idle())

    async def _news(self) -> None:
        now, asked = self._loop.time(), frozenset(self._in_hand)
        states = now >= self._states_at
        if states:
            self._states_at = now + books.states_seconds()
        news = await _news(books.Asked(self._worker.pk, asked, frozenset(self._challenged), states))
        self._in_hand.difference_update(asked - news.known)  # invented ones
        self._bell.listen(*map(hints.state_topic, news.jobs))
        for lease in set(news.stopped) - self._stopped:  # first: what a challenge asks for is of a run that is over
            self._stop(lease)
        for asked_for, message in news.challenges.items():
            self._challenged.add(asked_for)
            self._post(message)
        for released in news.released:
            self._in_hand.discard(released.lease)
            self._post(released)

    def _stop(self, lease: UUID) -> None:
        self._stopped.add(lease)
        self._post(Stop(lease=lease))

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            acks, self._acks = self._acks, {}
            messages, self._outbox = self._outbox, []
            for message in (*acks.values(), *messages):
                await self._say(message)

    def _post(self, message: Message) -> None:
        if len(self._outbox) >= UNSENT_MESSAGES:
            self._abort(Closed(BUSY))
            return
        self._outbox.append(message)
        self._to_send.set()

    async def _say(self, message: Message) -> None:
        await self._raw_send({"type": "websocket.send", "bytes": pack(message)})

    def _abort(self, end: Closed) -> None:
        async def close() -> None:
            raise end

        self._spawn(close())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._tasks.create_task(work)
        except (RuntimeError, AttributeError):  # the connection is ending, or has not begun
            work.close()


def _refusal(code: str, message: str, *, lease: UUID | None = None, fatal: bool = False) -> Refusal:
    return Refusal(code=code, message=message, fatal=fatal, lease=lease)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
