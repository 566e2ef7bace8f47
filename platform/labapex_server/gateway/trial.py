"""A speed trial as the platform holds it: what it asks, on its own clock, and what it makes of the answers. Pure.

    preparing -> timing (once for each seed) -> showing -> done

The seed is drawn when the worker says that it is ready, so nothing can be computed before. The time of an answer ends when its
digest is here; which of the answers must then be shown whole is drawn after all of them came.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from labapex.errors import MalformedInput
from labapex.protocol.frames import TrialAnswer, TrialBegin, TrialOver, TrialPart, TrialPrepare, TrialReady, TrialShow
from labapex.trial import SEED_BYTES
from labapex_server.workers.speed import Plan, Shown

REPETITIONS = 3
PREPARE_SECONDS = 300.0  # a sandbox, torch, a GPU that wakes up
ANSWER_SECONDS = 60.0
SHOW_SECONDS = 300.0


class Failed(Exception):
    """The trial came to no figure; the message says why."""


@dataclass
class Trial:
    """`clock` in seconds, never going back. Each `on_..` returns what is to be said, or None."""

    plan: Plan
    clock: Callable[[], float]
    id: UUID = field(default_factory=uuid4)
    draw: Callable[[int], int] = secrets.randbelow
    seeds: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    chosen: int | None = None
    shown: bytearray = field(default_factory=bytearray)
    _since: float = 0.0
    _limit: float = PREPARE_SECONDS
    _ready: bool = False

    def begin(self) -> TrialPrepare:
        self._since = self.clock()
        return TrialPrepare(trial=self.id, size=self.plan.size, rounds=self.plan.rounds)

    def expired(self) -> bool:
        return self.clock() - self._since > self._limit

    def over(self) -> TrialOver:
        return TrialOver(trial=self.id)

    def on_ready(self, message: TrialReady) -> TrialBegin:
        """Raises `Failed` where the worker cannot, `MalformedInput` out of turn."""
        if message.trial == self.id and message.problem:
            raise Failed(message.problem)
        self._mine(message.trial, not self._ready)
        self._ready = True
        return self._next()

    def on_answer(self, message: TrialAnswer) -> TrialBegin | TrialShow:
        """Raises `Failed` where it came too late, `MalformedInput` out of turn."""
        took = self.clock() - self._since
        self._mine(message.trial, len(self.seeds) == len(self.digests) + 1)
        if took > ANSWER_SECONDS:
            raise Failed(f"an answer took {took:.0f} s; {ANSWER_SECONDS:.0f} s are allowed")
        self.digests.append(message.digest)
        self.seconds.append(took)
        if len(self.digests) < REPETITIONS:
            return self._next()
        self.chosen, self._since, self._limit = self.draw(REPETITIONS), self.clock(), SHOW_SECONDS
        return TrialShow(trial=self.id, number=self.chosen)

    def on_part(self, message: TrialPart) -> Shown | None:
        """What is to be checked, once the last part is here. Raises `Failed` where it is not what the digest promised."""
        self._mine(message.trial, self.chosen is not None and message.offset == len(self.shown))
        self.shown += message.data
        if len(self.shown) > self.plan.size**2:
            raise Failed("the result that was shown is longer than it can be")
        if len(self.shown) < self.plan.size**2:
            return None
        number = self.chosen or 0
        if not hmac.compare_digest(hashlib.sha256(self.shown).digest(), self.digests[number]):
            raise Failed("the result that was shown is not the one whose digest was sent in time")
        return Shown(
            self.plan, self.id, self.seeds[number], bytes(self.shown), self.seconds[number], tuple(self.seconds)
        )

    def _next(self) -> TrialBegin:
        self.seeds.append(secrets.token_bytes(SEED_BYTES))
        self._since, self._limit = self.clock(), ANSWER_SECONDS
        return TrialBegin(trial=self.id, seed=self.seeds[-1])

    def _mine(self, trial: UUID, expected: bool) -> None:
        if trial != self.id or not expected:
            raise MalformedInput("this message is about no trial that waits for it")
