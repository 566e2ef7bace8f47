"""What the session knows of one lease, and how its log goes out. Pure, as the session is.

A log goes out in a window: `Open` asks how much the platform holds, frames follow from there, at most `WINDOW` ahead
of what is acknowledged. Where nothing moves for `RETRY_SECONDS`, `Open` asks again: that mends any loss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from labapex.protocol.devices import Observation
from labapex.protocol.frames import Failed, Fin, KeyRelease, KeyRequest, Observed, Open
from labapex_worker.effects import Effect, Send, SendFrames
from labapex_worker.phases import Phase

TRAINS = (Phase.GRANTED, Phase.STARTING, Phase.RUNNING)
WINDOW = 32  # frames on their way
RETRY_SECONDS = 5.0


@dataclass
class Work:
    """What the session knows of one lease. `line`: whether something can be sent now."""

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

    @property
    def open(self) -> bool:
        """Whether there is something of its log to send or to wait for."""
        if self.phase is Phase.FAILED:
            return self.drains and self.base < self.end
        return self.phase in (Phase.RUNNING, Phase.FINISHED) and (self.end > 0 or self.fin is not None)

    # -- what the platform says of its log -----------------------------------------------------------------------------

    def welcomed(self, base: int, now: float) -> None:
        """It holds `base` frames, and more may follow."""
        self.synced, self.ended, self.nacked, self.moved_at = True, False, -1, now
        self.base = max(self.base, base)
        self.cursor = self.base

    def acknowledged(self, base: int, now: float) -> None:
        """It holds `base` frames by now, more than before."""
        self.base, self.nacked, self.moved_at = base, -1, now
        self.cursor = max(self.cursor, base)

    def go_back(self, expected: int) -> bool:
        """It misses frame `expected`. False: that cannot be, or it has said so before."""
        if not self.base <= expected < self.cursor or self.nacked == expected:
            return False
        self.cursor = self.nacked = expected
        return True

    def overdue(self, now: float) -> bool:
        """Whether it owes an answer for so long that it is to be asked again. To be called a few times a second."""
        waits = not self.synced or self.cursor > self.base or self.ended
        if not self.open or not waits:
            self.moved_at = None
        elif self.moved_at is None:
            self.moved_at = now
        return self.moved_at is not None and now - self.moved_at >= RETRY_SECONDS

    # -- what is sent --------------------------------------------------------------------------------------------------

    def report(self, line: bool) -> list[Effect]:
        """What was observed and not sent yet."""
        if not line or not self.observations:
            return []
        readings, self.observations = tuple(self.observations), []
        return [Send(Observed(lease=self.lease, readings=readings))]

    def resume(self, line: bool) -> list[Effect]:
        """Ask the platform anew what it holds of the log."""
        self.synced = self.asked = False
        self.moved_at = None
        return self.flush(line)

    def flush(self, line: bool) -> list[Effect]:
        """What can be sent now of the log, or of the failure."""
        if not line:
            return []
        effects: list[Effect] = []
        if self.open and not self.synced and not self.asked:
            self.asked = True
            effects.append(Send(Open(lease=self.lease)))
        if self.open and self.synced:
            stop = min(self.end, self.base + WINDOW)
            if self.cursor < stop:
                effects.append(SendFrames(self.lease, self.cursor, stop))
                self.cursor = stop
            if self.phase is Phase.FINISHED and self.fin is not None and self.base == self.end and not self.ended:
                self.ended = True
                effects.append(Send(self.fin))
        if self.phase is Phase.FAILED and not self.open and not self.reported:
            self.reported = True
            effects.append(Send(Failed(lease=self.lease, reason=self.reason, declined=self.declined)))
        return effects
