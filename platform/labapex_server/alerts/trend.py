"""What a run's losses and their times come to, folded as they arrive. Pure: no database, no clock.

**Diverging.** Losses are taken in blocks of `BLOCK` iterations, and of each block only its median counts, so that single
spikes say nothing. The limit is the lowest median so far, plus the largest of: `SPREADS` times the spread within that block
(the median distance from its median), half of what the run had gained since its first block, and a tenth of the lowest
median's size. `BLOCKS` blocks in a row above it are a run that has lost what it had learnt; as many in a row below it have
recovered. Nothing is said of a run of fewer than `BLOCKS` + 1 blocks. The limit scales with the loss: a loss in other units
gives the same alarms.

**Stalled.** Longer without an iteration than `STALLS` times the usual time of one (the median over the latest blocks),
than three times the longest pause that the run has made so far (an evaluation, a checkpoint), and than `STALL_SECONDS`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

BLOCK = 25
BLOCKS = 3
SPREADS = 8
STALLS = 20
STALL_SECONDS = 120.0
_PACES = 9


@dataclass(frozen=True)
class Trend:
    """A run up to iteration `seen`. Times are seconds."""

    seen: int = 0
    losses: tuple[float | None, ...] = ()  # of the block that is not full; None: not finite
    times: tuple[float, ...] = ()  # with that of the iteration before it
    start: float | None = None  # the first block's median
    best: float | None = None  # the lowest
    spread: float = 0.0  # of that block
    above: int = 0  # blocks in a row above the limit
    below: int = 0  # and not above it
    diverging: bool = False
    bad: int = 0  # losses that are not finite
    last_bad: int | None = None  # the iteration of the latest one
    paces: tuple[float, ...] = ()  # of the latest blocks
    pause: float = 0.0  # the longest between two iterations

    @property
    def limit(self) -> float | None:
        """The median above which a block is too high."""
        if self.best is None or self.start is None:
            return None
        return self.best + max(SPREADS * self.spread, (self.start - self.best) / 2, abs(self.best) / 10)

    @property
    def not_finite(self) -> bool:
        """Whether one of the latest losses is not a finite number."""
        return self.last_bad is not None and self.seen - self.last_bad <= BLOCK

    def patience(self, expected: float | None) -> float:
        """Seconds without an iteration after which the run has stalled; `expected`: of an iteration, before one is known."""
        usual = median(self.paces) if self.paces else (expected or 0.0)
        return max(STALL_SECONDS, STALLS * usual, 3 * self.pause)

    def fold(self, losses: Sequence[float], times: Sequence[float]) -> Trend:
        """With the next iterations' losses, and when each was done."""
        trend = self
        at = 0
        while at < len(losses):
            room = BLOCK - len(trend.losses)
            trend = trend._grown(losses[at : at + room], times[at : at + room])
            at += room
        return trend

    def _grown(self, losses: Sequence[float], times: Sequence[float]) -> Trend:
        wrong = [n for n, loss in enumerate(losses, start=self.seen) if not math.isfinite(loss)]
        gaps = [b - a for a, b in pairwise((*self.times[-1:], *times)) if 0 < b - a < math.inf]
        trend = replace(
            self,
            seen=self.seen + len(losses),
            losses=(*self.losses, *(loss if math.isfinite(loss) else None for loss in losses)),
            times=(*self.times, *times),
            bad=self.bad + len(wrong),
            last_bad=wrong[-1] if wrong else self.last_bad,
            pause=max([self.pause, *gaps]),
        )
        return trend._closed() if len(trend.losses) == BLOCK else trend

    def _closed(self) -> Trend:
        """With the block that has become full."""
        paces = self.paces
        took = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        if 0 < took < math.inf:
            paces = (*paces, took)[-_PACES:]
        trend = replace(self, losses=(), times=self.times[-1:], paces=paces)
        finite = [loss for loss in self.losses if loss is not None]
        return trend._judged(finite) if 2 * len(finite) >= BLOCK else trend

    def _judged(self, losses: list[float]) -> Trend:
        middle = median(losses)
        spread = min(median(abs(loss - middle) for loss in losses), sys.float_info.max)
        limit = self.limit
        high = limit is not None and middle > limit
        above, below = (self.above + 1, 0) if high else (0, self.below + 1)
        diverging = above >= BLOCKS or (self.diverging and below < BLOCKS)
        trend = replace(self, above=above, below=below, diverging=diverging)
        if self.best is None or middle < self.best:
            trend = replace(trend, best=middle, spread=spread)
        return replace(trend, start=middle) if self.start is None else trend
