"""What the agent does next: a pure state machine. It knows no sockets, no clock, no disk; it is told and it answers.

Told are the platform's messages, what happened on the host, and the time; the answers are `Effect`s in the order in
which they are to be carried out. What must survive a kill is an effect `Move` before it is anything else.

Of a connection: nothing is sent before the platform's `Nonce`, nothing but `Hello` before its `Greeting`.
Of a lease:

    granted -> starting -> running -> finished -> closed -> released        (`Phase`)
       \\__________\\_________\\____\\____\\______-> failed -^
                                \\____\\______-> stopped -^

How its log goes out is the matter of `work`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from uuid import UUID

from labapex.protocol.devices import Observation
from labapex.protocol.frames import (
    MAX_OBSERVATIONS,
    Fin,
    Grant,
    Greeting,
    Heartbeat,
    Idle,
    KeyRelease,
    KeyRequest,
    Nack,
    Nonce,
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
    Start,
    Tell,
    Upload,
    UploadChunks,
)
from labapex_worker.phases import Phase
from labapex_worker.work import TRAINS, Work

OVER = (Phase.CLOSED, Phase.STOPPED)  # nothing more is sent of its log
PAUSE_HEARTBEATS = 3  # between two connections at most: a platform that was away is to hear of its leases in time
OBSERVATIONS_AT_ONCE = 10


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
            effects += work.resume(self._greeted)
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
            if work.overdue(now):
                effects += work.resume(self._greeted)
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
            effects += work.flush(self._greeted)
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
            return [Move(lease, Phase.RUNNING), *work.flush(self._greeted)]
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
        return work.report(self._greeted) if len(work.observations) >= OBSERVATIONS_AT_ONCE else []

    def failed(self, lease: UUID, reason: str) -> list[Effect]:
        work = self.works.get(lease)
        if work is None or work.phase in (Phase.FAILED, Phase.RELEASED):
            return []
        work.phase, work.reason = Phase.FAILED, reason[:2000]
        return [Move(lease, Phase.FAILED, work.reason), Kill(lease), *work.flush(self._greeted), *self._ask()]

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
        return work.flush(self._greeted)

    def finished(self, fin: Fin) -> list[Effect]:
        """The log is complete on this host."""
        work = self.works[fin.lease]
        work.fin = fin
        effects: list[Effect] = []
        if work.phase in (Phase.STARTING, Phase.RUNNING):
            work.phase = Phase.FINISHED
            effects.append(Move(work.lease, Phase.FINISHED))
            effects += work.report(self._greeted)
        return effects + work.flush(self._greeted)

    def welcomed(self, lease: UUID, base: int, now: float) -> list[Effect]:
        """The platform holds `base` frames, whose hash was compared."""
        work = self.works.get(lease)
        if work is None or not work.open:
            return []
        work.welcomed(base, now)
        return work.flush(self._greeted)

    def acknowledged(self, lease: UUID, base: int, now: float) -> list[Effect]:
        work = self.works.get(lease)
        if work is None or base <= work.base:
            return []
        work.acknowledged(base, now)
        return work.flush(self._greeted)

    def nacked(self, message: Nack) -> list[Effect]:
        """A gap at the platform: send again from there."""
        work = self.works.get(message.lease)
        if work is None or not work.go_back(message.expected):
            return []
        return work.flush(self._greeted)

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
