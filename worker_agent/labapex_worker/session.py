"""What the agent does next: a pure state machine. It knows no sockets, no clock, no disk; it is told and it answers.

Told are the platform's messages, what happened on the host, and the time; the answers are `Effect`s in the order in
which they are to be carried out. What must survive a kill is an effect `Move` before it is anything else.

Of a connection: nothing is sent before the platform's `Nonce`, nothing but `Hello` before its `Greeting`.
Of a lease:

    granted -> starting -> running -> finished -> closed -> released        (`Phase`)
       \\__________\\_________\\____\\____\\______-> failed -^
                                \\____\\______-> stopped -^

Its log goes out in a window: `Open` asks how much the platform holds, frames follow from there, at most `WINDOW` ahead
of what is acknowledged. Where nothing moves for `RETRY_SECONDS`, `Open` asks again: that mends any loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from uuid import UUID

from labapex.protocol.devices import Observation
from labapex.protocol.frames import (
    MAX_OBSERVATIONS,
    Failed,
    Fin,
    Grant,
    Greeting,
    Heartbeat,
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
    Stop,
    TrialBegin,
    TrialOver,
    TrialPrepare,
    TrialShow,
)
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex_worker.effects import (
    Accept,
    Decline,
    Discard,
    Effect,
    Fetch,
    HangUp,
    KeepRelease,
    Kill,
    Measure,
    Move,
    SayHello,
    Send,
    SendFrames,
    Start,
    Tell,
    Upload,
    UploadChunks,
)
from labapex_worker.phases import Phase

TRAINS = (Phase.GRANTED, Phase.STARTING, Phase.RUNNING)
OVER = (Phase.CLOSED, Phase.STOPPED)  # nothing more is sent of its log
WINDOW = 32  # frames on their way
RETRY_SECONDS = 5.0
PAUSE_HEARTBEATS = 3  # between two connections at most: a platform that was away is to hear of its leases in time
OBSERVATIONS_AT_ONCE = 10


@dataclass
class Work:
    """What the session knows of one lease."""

    lease: UUID
    phase: Phase
    reason: str = ""
    declined: bool = False  # for lack of room; a daemon that is killed before it has said so calls it a failure
    alive: bool = False  # a process of it may still run
    key_request: KeyRequest | None = None
    key_release: KeyRelease | None = None
    base: int = 0  # frames that the platform holds
    end: int = 0  # frames that are spooled
    fin: Fin | None = None
    drains: bool = True  # False: the platform takes no more of its log
    observations: list[Observation] = field(default_factory=list)  # not sent yet; the oldest go where no line is
    # Of this connection:
    cursor: int = 0  # next frame to send
    synced: bool = False  # the platform said what it holds
    asked: bool = False  # `Open` sent
    nacked: int = -1  # the last gap that was filled, so that a burst of complaints is answered once
    ended: bool = False  # `Fin` sent
    reported: bool = False  # `Failed` sent
    moved_at: float | None = None  # when its log last made progress

    @property
    def busy(self) -> bool:
        return self.alive or self.phase in TRAINS


@dataclass
class Session:
    """One worker's side of the conversation, over any number of connections."""

    slots: int = 1
    works: dict[UUID, Work] = field(default_factory=dict)
    held: str | None = None  # why it asks for no more work; None: it does
    price: int | None = None  # micro-credits for an hour of the next lease; None: what the platform has on record
    room: Limits | None = None  # what one job may take of the host
    hours: tuple[Hours, ...] = ()  # in which it takes work, by UTC; none: always

    _greeted: bool = False
    _connected: bool = False
    _asked: bool = False
    _heartbeat_seconds: float = 0.0
    _heartbeat_at: float = 0.0

    @property
    def longest_pause(self) -> float:
        """Seconds that may lie between two connections."""
        return PAUSE_HEARTBEATS * self._heartbeat_seconds or math.inf

    def restored(self) -> list[Effect]:
        """Go on where the program before this one stopped; whether what ran then still runs, the shell will say."""
        effects: list[Effect] = []
        for work in self.works.values():
            if work.phase is Phase.GRANTED:
                effects.append(Fetch(work.lease))
            elif work.phase is Phase.RELEASED:
                effects.append(Discard(work.lease, work.reason))
        return effects

    # -- the connection ------------------------------------------------------------------------------------------------

    def connected(self) -> list[Effect]:
        self._connected, self._greeted, self._asked = True, False, False
        for work in self.works.values():
            work.reported = False
        return []

    def disconnected(self) -> list[Effect]:
        self._connected = self._greeted = False
        return []

    def nonce(self, message: Nonce) -> list[Effect]:
        if self._greeted:
            return [HangUp("the platform sent a second nonce")]
        return [SayHello(message.nonce, tuple(work.lease for work in self._live()))]

    def greeting(self, message: Greeting, now: float) -> list[Effect]:
        if not self._connected or self._greeted:
            return [HangUp("the platform sent a second greeting")]
        self._greeted = True
        self._heartbeat_seconds = message.heartbeat_seconds
        self._heartbeat_at = now + message.heartbeat_seconds
        effects: list[Effect] = []
        known = set(message.leases)
        for work in list(self._live()):
            if work.lease not in known:
                effects += self.released(Released(lease=work.lease, reason="the platform no longer knows the lease"))
                continue
            if work.key_request is not None and work.key_release is None:
                effects.append(Send(work.key_request))
            effects += self._resume(work)
        return effects + self._ask()

    def tick(self, now: float) -> list[Effect]:
        """To be called a few times a second."""
        if not self._greeted:
            return []
        effects: list[Effect] = []
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._heartbeat_seconds
            leases = tuple(work.lease for work in self._live() if work.phase is not Phase.FAILED)
            effects.append(Send(Heartbeat(leases=leases)))
        for work in self._live():
            waits = not work.synced or work.cursor > work.base or work.ended
            if not self._open(work) or not waits:
                work.moved_at = None
            elif work.moved_at is None:
                work.moved_at = now
            elif now - work.moved_at >= RETRY_SECONDS:
                effects += self._resume(work)
        return effects

    # -- the owner -----------------------------------------------------------------------------------------------------

    def hold(self, reason: str) -> list[Effect]:
        """Take no more work, and tell the platform why. A grant that is on its way already is worked on all the same."""
        if reason == self.held:
            return []
        self.held, self._asked = reason, False
        return self._ask()

    def go(self, price: int | None, room: Limits | None = None, hours: tuple[Hours, ...] = ()) -> list[Effect]:
        """Take work, at this price, of jobs that this room is enough for; `hours` are told to clients."""
        if self.held is None and (price, room, hours) == (self.price, self.room, self.hours):
            return []
        self.held, self.price, self.room, self.hours, self._asked = None, price, room, hours, False
        return self._ask()

    def give_back(self, reason: str) -> list[Effect]:
        """Give up what trains here, so that the job goes to another worker."""
        trains = [work.lease for work in self.works.values() if work.phase in TRAINS]
        return [effect for lease in trains for effect in self.failed(lease, reason)]

    def refusal(self, message: Refusal) -> list[Effect]:
        work = None if message.lease is None else self.works.get(message.lease)
        effects: list[Effect] = []
        if work is not None and work.phase not in (*OVER, Phase.RELEASED):
            work.drains = False
            effects += self.failed(work.lease, f"the platform refused: {message.message} ({message.code})")
            effects += self._flush(work)
        if message.fatal:
            effects.append(HangUp(f"the platform refused: {message.message} ({message.code})"))
        return effects

    def measure(self, message: TrialPrepare | TrialBegin | TrialShow | TrialOver) -> list[Effect]:
        """A speed trial. It has the host for itself: jobs come afterwards."""
        if isinstance(message, TrialPrepare) and self._busy():
            return [Decline(message.trial, "a job runs on this host")]
        return [Measure(message)]

    # -- leases, as the platform sees them -----------------------------------------------------------------------------

    def grant(self, message: Grant) -> list[Effect]:
        self._asked = False
        if message.lease in self.works:
            return [Accept(message)]  # said twice: only the token can be new
        busy = self._busy()
        self.works[message.lease] = Work(message.lease, Phase.GRANTED)
        if busy >= self.slots:
            return [Accept(message), *self.failed(message.lease, "the worker has no free slot")]
        return [Accept(message), Fetch(message.lease), *self._ask()]

    def idle(self, message: Idle) -> list[Effect]:
        return []  # the platform remembers that this worker is ready

    def key_release(self, message: KeyRelease) -> list[Effect]:
        work = self.works.get(message.lease)
        if work is None or work.key_request is None or work.key_release is not None:
            return []
        work.key_release = message
        return [KeepRelease(message), Tell(message.lease, message)]

    def open_chunks(self, message: OpenChunks) -> list[Effect]:
        work = self.works.get(message.lease)
        if work is None or work.phase not in (Phase.FINISHED, *OVER):
            return []
        return [UploadChunks(message.lease, message.number, message.indices, message.deadline)]

    def open_states(self, message: OpenStates) -> list[Effect]:
        """What a challenge asks for; or, while the job trains, what another host could go on from."""
        work = self.works.get(message.lease)
        if work is None or work.phase not in (Phase.RUNNING, Phase.FINISHED, *OVER):
            return []
        return [Upload(message.lease, message.indices, message.deadline)]

    def stop(self, message: Stop) -> list[Effect]:
        """The client wants no more of it. What it has done is shown, and its states are kept for that."""
        work = self.works.get(message.lease)
        if work is None or work.phase not in (Phase.RUNNING, Phase.FINISHED):
            return []
        work.phase, work.reason = Phase.STOPPED, "stopped by its client"
        return [Move(work.lease, Phase.STOPPED, work.reason), Kill(work.lease)]

    def released(self, message: Released) -> list[Effect]:
        work = self.works.get(message.lease)
        if work is None or work.phase is Phase.RELEASED:
            return []
        work.phase, work.reason = Phase.RELEASED, message.reason
        return [Move(work.lease, Phase.RELEASED, message.reason), Discard(work.lease, message.reason)]

    # -- leases, as the host sees them ---------------------------------------------------------------------------------

    def fetched(self, lease: UUID) -> list[Effect]:
        work = self.works.get(lease)
        if work is None or work.phase is not Phase.GRANTED:
            return []
        work.phase = Phase.STARTING
        return [Move(lease, Phase.STARTING), Start(lease)]

    def started(self, lease: UUID) -> list[Effect]:
        """It runs: just started, or found running by a new daemon."""
        work = self.works.get(lease)
        if work is None:
            return [Kill(lease)]
        work.alive = True
        if work.phase is Phase.STARTING:
            work.phase = Phase.RUNNING
            return [Move(lease, Phase.RUNNING), *self._flush(work)]
        return [] if work.phase in (Phase.RUNNING, Phase.FINISHED, Phase.CLOSED) else [Kill(lease)]

    def exited(self, lease: UUID, how: str) -> list[Effect]:
        """No process of it is left; `how` says how it ended."""
        work = self.works.get(lease)
        if work is None:
            return []
        work.alive = False
        if work.phase in (Phase.STARTING, Phase.RUNNING):
            if work.fin is not None:  # kept by a daemon that did not come to say so
                return [*self.finished(work.fin), *self._ask()]
            return [*self.failed(lease, f"the executable ended before its log was complete: {how}"), *self._ask()]
        return self._ask()

    def observed(self, lease: UUID, reading: Observation) -> list[Effect]:
        """The agent looked at the device on which the lease runs."""
        work = self.works.get(lease)
        if work is None or work.phase is not Phase.RUNNING:
            return []
        work.observations = [*work.observations, reading][-MAX_OBSERVATIONS:]
        return self._report(work) if len(work.observations) >= OBSERVATIONS_AT_ONCE else []

    def failed(self, lease: UUID, reason: str) -> list[Effect]:
        work = self.works.get(lease)
        if work is None or work.phase in (Phase.FAILED, Phase.RELEASED):
            return []
        work.phase, work.reason = Phase.FAILED, reason[:2000]
        return [Move(lease, Phase.FAILED, work.reason), Kill(lease), *self._flush(work), *self._ask()]

    def declined(self, lease: UUID, reason: str) -> list[Effect]:
        """The host has not the room that the job asks for, and nothing was started."""
        work = self.works.get(lease)
        if work is not None and work.phase in (Phase.GRANTED, Phase.STARTING):
            work.declined = True
        return self.failed(lease, reason)

    def discarded(self, lease: UUID) -> list[Effect]:
        """Nothing of it is left on the host."""
        self.works.pop(lease, None)
        return self._ask()

    # -- the log -------------------------------------------------------------------------------------------------------

    def key_requested(self, message: KeyRequest) -> list[Effect]:
        work = self.works[message.lease]
        if work.key_request is None:
            work.key_request = message
            return [Send(message)] if self._greeted else []
        return [] if work.key_release is None else [Tell(message.lease, work.key_release)]

    def spooled(self, lease: UUID, end: int) -> list[Effect]:
        """The log now has `end` frames."""
        work = self.works[lease]
        work.end = end
        return self._flush(work)

    def finished(self, fin: Fin) -> list[Effect]:
        """The log is complete on this host."""
        work = self.works[fin.lease]
        work.fin = fin
        effects: list[Effect] = []
        if work.phase in (Phase.STARTING, Phase.RUNNING):
            work.phase = Phase.FINISHED
            effects.append(Move(work.lease, Phase.FINISHED))
            effects += self._report(work)
        return effects + self._flush(work)

    def welcomed(self, lease: UUID, base: int, now: float) -> list[Effect]:
        """The platform holds `base` frames, whose hash was compared."""
        work = self.works.get(lease)
        if work is None or not self._open(work):
            return []
        work.synced, work.ended, work.nacked, work.moved_at = True, False, -1, now
        work.base = max(work.base, base)
        work.cursor = work.base
        return self._flush(work)

    def acknowledged(self, lease: UUID, base: int, now: float) -> list[Effect]:
        work = self.works.get(lease)
        if work is None or base <= work.base:
            return []
        work.base, work.nacked, work.moved_at = base, -1, now
        work.cursor = max(work.cursor, base)
        return self._flush(work)

    def nacked(self, message: Nack) -> list[Effect]:
        """A gap at the platform: send again from there."""
        work = self.works.get(message.lease)
        if work is None or not work.base <= message.expected < work.cursor:
            return []
        if work.nacked == message.expected:
            return []
        work.cursor = work.nacked = message.expected
        return self._flush(work)

    def finacked(self, lease: UUID) -> list[Effect]:
        work = self.works.get(lease)
        if work is None or work.phase is not Phase.FINISHED:
            return []
        work.phase = Phase.CLOSED
        return [Move(lease, Phase.CLOSED)]

    # ------------------------------------------------------------------------------------------------------------------

    def _live(self) -> list[Work]:
        return [work for work in self.works.values() if work.phase is not Phase.RELEASED]

    def _busy(self) -> int:
        return sum(work.busy for work in self.works.values())

    def _ask(self) -> list[Effect]:
        """Say, once on each connection and at each change, that it wants work or why not."""
        if not self._greeted or self._asked:
            return []
        if self.held is not None:
            self._asked = True
            return [Send(Paused(reason=self.held[:500]))]
        if self._busy() >= self.slots:
            return []
        self._asked = True
        return [Send(Ready(price_per_hour=self.price, room=self.room, hours=self.hours))]

    @staticmethod
    def _open(work: Work) -> bool:
        """Whether there is something of its log to send or to wait for."""
        if work.phase is Phase.FAILED:
            return work.drains and work.base < work.end
        return work.phase in (Phase.RUNNING, Phase.FINISHED) and (work.end > 0 or work.fin is not None)

    def _report(self, work: Work) -> list[Effect]:
        if not self._greeted or not work.observations:
            return []
        readings, work.observations = tuple(work.observations), []
        return [Send(Observed(lease=work.lease, readings=readings))]

    def _resume(self, work: Work) -> list[Effect]:
        """Ask the platform anew what it holds of a log."""
        work.synced = work.asked = False
        work.moved_at = None
        return self._flush(work)

    def _flush(self, work: Work) -> list[Effect]:
        """What can be sent now of a lease's log, or of its failure."""
        if not self._greeted:
            return []
        effects: list[Effect] = []
        if self._open(work) and not work.synced and not work.asked:
            work.asked = True
            effects.append(Send(Open(lease=work.lease)))
        if self._open(work) and work.synced:
            stop = min(work.end, work.base + WINDOW)
            if work.cursor < stop:
                effects.append(SendFrames(work.lease, work.cursor, stop))
                work.cursor = stop
            if work.phase is Phase.FINISHED and work.fin is not None and work.base == work.end and not work.ended:
                work.ended = True
                effects.append(Send(work.fin))
        if work.phase is Phase.FAILED and not self._open(work) and not work.reported:
            work.reported = True
            effects.append(Send(Failed(lease=work.lease, reason=work.reason, declined=work.declined)))
        return effects
