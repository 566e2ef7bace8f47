"""Session and spool together: everything the worker decides and remembers, without a socket or a process.

Each method is told one thing that happened and returns what is to be done outside, AFTER everything that must be
remembered has been committed. The daemon carries it out; the tests carry it out against a platform in memory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from labapex.errors import MalformedInput, Tampered
from labapex.protocol.devices import Observation
from labapex.protocol.frames import (
    Ack,
    Data,
    Failed,
    Fin,
    FinAck,
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
    Welcome,
    from_executable,
    to_agent,
)
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex_worker import effects
from labapex_worker.phases import Phase
from labapex_worker.session import Session
from labapex_worker.spool import Forked, Lease, Spool, Taken
from labapex_worker.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToPlatform:
    """A message for the platform, if there is a connection; else it may be dropped."""

    message: Ready | Paused | Heartbeat | Observed | Failed | Open | Data | Fin | KeyRequest


@dataclass(frozen=True)
class ToExecutable:
    """A message for a lease's executable, if it is connected; else it may be dropped."""

    lease: UUID
    message: Welcome | Ack | Nack | FinAck | KeyRelease | Refusal


Errand = (
    ToPlatform
    | ToExecutable
    | effects.SayHello
    | effects.Fetch
    | effects.Start
    | effects.Kill
    | effects.UploadChunks
    | effects.Upload
    | effects.Discard
    | effects.HangUp
    | effects.Measure
    | effects.Decline
)


class Agent:
    """The worker's mind. Not for use by several threads."""

    def __init__(self, spool: Spool, *, slots: int = 1) -> None:
        self._spool = spool
        self._held_back: dict[UUID, int] = {}  # leases whose executable waits for room in the spool, and for how much
        self._nacked: dict[
            UUID, int
        ] = {}  # the gap of which the executable was told: once, or it would send in circles
        self.session = Session(
            slots=slots,
            works={
                lease.id: Work(
                    lease=lease.id,
                    phase=lease.phase,
                    reason=lease.reason,
                    key_request=lease.key_request,
                    key_release=lease.key_release,
                    base=lease.base,
                    end=lease.seq,
                    fin=lease.fin,
                )
                for lease in spool.leases()
            },
        )

    def restored(self) -> list[Errand]:
        return self._do(self.session.restored())

    # -- the platform --------------------------------------------------------------------------------------------------

    def connected(self) -> list[Errand]:
        return self._do(self.session.connected())

    def disconnected(self) -> list[Errand]:
        return self._do(self.session.disconnected())

    def tick(self, now: float) -> list[Errand]:
        return [*self._let_on(), *self._do(self.session.tick(now))]

    def from_platform(self, data: bytes, now: float) -> list[Errand]:
        """One message from the platform. Raises `MalformedInput` for what is none: the connection is of no more use."""
        message = to_agent(data)
        match message:
            case Nonce():
                return self._do(self.session.nonce(message))
            case Greeting():
                return self._do(self.session.greeting(message, now))
            case Refusal():
                return self._do(self.session.refusal(message))
            case Welcome():
                return self._settle(message.lease, message.seq, message.head, now, welcome=True)
            case Ack():
                return self._settle(message.lease, message.seq + 1, message.head, now, welcome=False)
            case Nack():
                return self._do(self.session.nacked(message))
            case FinAck():
                return self._do(self.session.finacked(message.lease))
            case Grant():
                return self._do(self.session.grant(message))
            case Idle():
                return self._do(self.session.idle(message))
            case KeyRelease():
                return self._do(self.session.key_release(message))
            case OpenChunks():
                return self._do(self.session.open_chunks(message))
            case OpenStates():
                return self._do(self.session.open_states(message))
            case TrialPrepare() | TrialBegin() | TrialShow() | TrialOver():
                return self._do(self.session.measure(message))
            case Stop():
                return self._do(self.session.stop(message))
            case Released():
                return self._do(self.session.released(message))

    # -- the executable ------------------------------------------------------------------------------------------------

    def may_speak(self, lease: UUID, peer: int) -> bool:
        """Whether the process `peer` may speak for a lease.

        Before the key was asked for no line of the client's code has run, so the process that asks is the executable's
        supervisor; the client's code, which could reach the socket as well, is another process."""
        held = self._spool.lease(lease)
        return held is not None and held.peer in (None, peer)

    def from_executable(self, lease: UUID, data: bytes, peer: int) -> list[Errand]:
        """One message from a lease's executable. Raises `MalformedInput` where it breaks the protocol."""
        message = from_executable(data)
        if message.lease != lease:
            raise Tampered("the executable speaks for another lease")
        held = self._spool.lease(lease)
        if held is None or held.phase in (Phase.FAILED, Phase.STOPPED, Phase.RELEASED):
            return [ToExecutable(lease, Refusal(code="over", message="the lease is over", fatal=True, lease=lease))]
        match message:
            case Open():
                self._nacked.pop(lease, None)
                return [ToExecutable(lease, Welcome(lease=lease, seq=held.seq, next=held.next, head=held.head))]
            case KeyRequest():
                if held.key_request is None:
                    self._spool.keep_request(message, peer)
                elif held.key_request != message:
                    raise Tampered("the executable asks for its keys a second time with other keys of its own")
                return self._do(self.session.key_requested(message))
            case Data():
                return self._take(message)
            case Fin():
                return self._finish(message)

    def _take(self, frame: Data) -> list[Errand]:
        taken = self._spool.append(frame)
        held = self._row(frame.lease)
        if taken is Taken.FULL:
            if frame.lease not in self._held_back:
                log.warning(
                    "lease %s: the spool or the disk is full; its log is held back until there is room", frame.lease
                )
            self._held_back.setdefault(frame.lease, len(frame.payload))
            return []
        if taken is Taken.GAP:
            if frame.lease in self._held_back or self._nacked.get(frame.lease) == held.seq:
                return []
            self._nacked[frame.lease] = held.seq
            return [ToExecutable(frame.lease, Nack(lease=frame.lease, expected=held.seq))]
        self._nacked.pop(frame.lease, None)
        ack = ToExecutable(frame.lease, Ack(lease=frame.lease, seq=held.seq - 1, head=held.head))
        return [ack, *self._do(self.session.spooled(frame.lease, held.seq))]

    def _finish(self, fin: Fin) -> list[Errand]:
        taken = self._spool.finish(fin)
        if taken is Taken.GAP:
            return [ToExecutable(fin.lease, Nack(lease=fin.lease, expected=self._row(fin.lease).seq))]
        return [ToExecutable(fin.lease, FinAck(lease=fin.lease)), *self._do(self.session.finished(fin))]

    def _settle(self, lease: UUID, count: int, head: bytes, now: float, *, welcome: bool) -> list[Errand]:
        if lease not in self.session.works:
            return []
        try:
            base = self._spool.acknowledge(lease, count, head)
        except Forked as error:
            if not welcome:  # it may have been garbled on its way; what the platform holds, it says on a new connection
                return self._do([effects.HangUp(f"an acknowledgement does not fit the log of {lease}: {error}")])
            log.error("lease %s: %s", lease, error)
            self.session.works[lease].drains = False
            return self._do(self.session.failed(lease, f"the two ends of the log differ: {error}"))
        if welcome and count < base:
            self.session.works[lease].drains = False
            reason = f"the platform has lost frames: it acknowledged {base} and now holds {count}"
            return self._do(self.session.failed(lease, reason))
        told = self.session.welcomed if welcome else self.session.acknowledged
        return [*self._do(told(lease, base, now)), *self._let_on()]

    def _let_on(self) -> list[Errand]:
        """Ask the executables that wait for room to go on, where there is some."""
        found = [lease for lease, size in self._held_back.items() if self._spool.room(size)]
        for lease in found:
            del self._held_back[lease]
        return [ToExecutable(lease, Nack(lease=lease, expected=self._row(lease).seq)) for lease in found]

    # -- the host ------------------------------------------------------------------------------------------------------

    def fetched(self, lease: UUID) -> list[Errand]:
        return self._do(self.session.fetched(lease))

    def started(self, lease: UUID) -> list[Errand]:
        return self._do(self.session.started(lease))

    def exited(self, lease: UUID, how: str) -> list[Errand]:
        return self._do(self.session.exited(lease, how))

    def declined(self, lease: UUID, reason: str) -> list[Errand]:
        return self._do(self.session.declined(lease, reason))

    def failed(self, lease: UUID, reason: str) -> list[Errand]:
        return self._do(self.session.failed(lease, reason))

    def hold(self, reason: str) -> list[Errand]:
        return self._do(self.session.hold(reason))

    def go(self, price: int | None, room: Limits | None = None, hours: tuple[Hours, ...] = ()) -> list[Errand]:
        return self._do(self.session.go(price, room, hours))

    def give_back(self, reason: str) -> list[Errand]:
        return self._do(self.session.give_back(reason))

    def observed(self, lease: UUID, reading: Observation) -> list[Errand]:
        return self._do(self.session.observed(lease, reading))

    def discarded(self, lease: UUID) -> list[Errand]:
        self._spool.forget(lease)
        self._held_back.pop(lease, None)
        self._nacked.pop(lease, None)
        return self._do(self.session.discarded(lease))

    # ------------------------------------------------------------------------------------------------------------------

    def _row(self, lease: UUID) -> Lease:
        if (held := self._spool.lease(lease)) is None:
            raise MalformedInput(f"no lease {lease} is held here")
        return held

    def _do(self, wanted: list[effects.Effect]) -> list[Errand]:
        """Commit what is to be remembered; hand on the rest in its order."""
        errands: list[Errand] = []
        for effect in wanted:
            match effect:
                case effects.Accept(grant):
                    self._spool.add(grant)
                case effects.Move(lease, phase, reason):
                    self._spool.move(lease, phase, reason)
                    log.info("lease %s: %s%s", lease, phase, f" ({reason})" if reason else "")
                case effects.KeepRelease(release):
                    self._spool.keep_release(release)
                case effects.Send(message):
                    errands.append(ToPlatform(message))
                case effects.SendFrames(lease, first, stop):
                    errands += [ToPlatform(frame) for frame in self._spool.frames(lease, first, stop)]
                case effects.Tell(lease, told):
                    errands.append(ToExecutable(lease, told))
                case _:
                    errands.append(cast(Errand, effect))
        return errands
