"""A long run's loss in few numbers: what a chart is drawn from without reading each point.

Of each full `SPAN` of iterations the log's writer keeps one row, in the transaction that completes it: least, greatest and
sum of the finite losses in bins of `BIN` iterations. Rows are never changed. What they leave out (the run's latest
iterations, stretches finer than a bin) is read from the frames. An extreme value is never averaged away: each bucket of a
chart keeps its least and its greatest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from labapex_server.telemetry.models import Frame, Log, Summary
from labapex_server.telemetry.stints import Part

BIN = 64
SPAN = 4096
MAX_BUCKETS = 4000

Columns = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Curve:
    """Iterations `first` .. `stop` - 1 of a run in buckets of `width`; the bucket at place n begins with iteration
    (first // width + n) x width. None: no loss of it is finite (or, of a mean, their sum
    is not). `missing`: how many of it are not."""

    first: int
    stop: int
    width: int
    end: int  # iterations that the run has
    least: list[float | None]
    greatest: list[float | None]
    mean: list[float | None]
    missing: list[int]


def summarise(lease: UUID, before: int, after: int) -> None:
    """Keep the summaries of the spans that a log completes by growing from `before` to `after` iterations."""
    for span in range(before // SPAN, after // SPAN):
        first = span * SPAN
        bins = _Bins(first, BIN, SPAN // BIN)
        for begin, losses in _stretches(lease, first, first + SPAN):
            bins.add(begin, losses)
        Summary.objects.create(log_id=lease, first=first, bins=bins.packed())


def curve(run: Sequence[Part], first: int, stop: int | None, buckets: int) -> Curve:
    """Losses `first` .. `stop` - 1 of a run (`stop` None: to its end), in at most about `buckets` buckets."""
    own = run[-1].lease if run and run[-1].stop is None else None  # else it is cut, and ends where all parts end
    held = Log.objects.filter(pk=own).values_list("next", flat=True).first()
    end = held or max((part.stop or 0 for part in run), default=0)
    first = min(max(0, first), end)
    stop = end if stop is None else min(max(first, stop), end)
    buckets = min(max(1, buckets), MAX_BUCKETS)
    width = max(1, -(-(stop - first) // buckets))
    if width >= BIN:
        width = -(-width // BIN) * BIN
    begin = first // width * width
    bins = _Bins(begin, width, -(-(stop - begin) // width))
    low = begin if width >= BIN else first
    for part in run:
        high = stop if part.stop is None else min(stop, part.stop)
        if low < high:
            _fill(bins, part.lease, low, high, coarse=width >= BIN)
            low = high
    return bins.curve(first, stop, end)


def _fill(bins: _Bins, lease: UUID, low: int, high: int, *, coarse: bool) -> None:
    """Losses `low` .. `high` - 1 of one log: by its summaries, and by its frames where it has none."""
    at = low
    if coarse:
        rows = Summary.objects.filter(log=lease, first__gt=low - SPAN, first__lt=high).order_by("first")
        for first, packed in rows.values_list("first", "bins"):
            # Where this log begins or ends to count within a bin, that bin is read from the frames.
            begin, until = -(-max(low, first) // BIN) * BIN, min(high, first + SPAN) // BIN * BIN
            if begin >= until:
                continue
            for stretch in _stretches(lease, at, begin):
                bins.add(*stretch)
            bins.merge(begin, _unpacked(packed)[:, (begin - first) // BIN : (until - first) // BIN])
            at = until
    for stretch in _stretches(lease, at, high):
        bins.add(*stretch)


def _stretches(lease: UUID, low: int, high: int) -> Iterator[tuple[int, Columns]]:
    """The losses `low` .. `high` - 1 of a log, frames at a time."""
    if low >= high:
        return
    rows = Frame.objects.filter(log=lease, n__gt=0, first__gt=low - 4096, first__lt=high).order_by("seq")
    for first, data in rows.values_list("first", "losses").iterator(chunk_size=1000):
        losses = np.frombuffer(bytes(data), dtype="<f8")[max(0, low - first) : max(0, high - first)]
        if len(losses):
            yield max(low, first), losses


def _unpacked(packed: bytes | memoryview) -> Columns:
    return np.frombuffer(bytes(packed), dtype="<f8").reshape(5, SPAN // BIN)


class _Bins:
    """Buckets of equal width that are being filled, in any order."""

    def __init__(self, begin: int, width: int, count: int) -> None:
        self.begin, self.width = begin, width
        self.least, self.greatest = np.full(count, np.inf), np.full(count, -np.inf)
        self.sum, self.finite, self.missing = np.zeros(count), np.zeros(count), np.zeros(count)

    def add(self, first: int, losses: Columns) -> None:
        """Losses of iteration `first` and the ones after it."""
        places = (np.arange(first, first + len(losses)) - self.begin) // self.width
        good = np.isfinite(losses)
        self._at(places[good], losses[good], losses[good], losses[good], 1.0)
        np.add.at(self.missing, places[~good], 1)

    def merge(self, first: int, columns: Columns) -> None:
        """Bins of `BIN` iterations from iteration `first` on, as `packed` writes them."""
        places = (first + BIN * np.arange(columns.shape[1]) - self.begin) // self.width
        least, greatest, total, finite, missing = columns
        self._at(places, least, greatest, total, finite)
        np.add.at(self.missing, places, missing)

    def _at(self, places: Any, least: Columns, greatest: Columns, total: Columns, finite: Columns | float) -> None:
        np.minimum.at(self.least, places, least)
        np.maximum.at(self.greatest, places, greatest)
        with np.errstate(over="ignore"):  # losses near the greatest number there is: then there is no mean
            np.add.at(self.sum, places, total)
        np.add.at(self.finite, places, finite)

    def packed(self) -> bytes:
        return np.stack([self.least, self.greatest, self.sum, self.finite, self.missing]).astype("<f8").tobytes()

    def curve(self, first: int, stop: int, end: int) -> Curve:
        mean = np.divide(self.sum, self.finite, out=np.full(len(self.sum), np.nan), where=self.finite > 0)
        least, greatest, middle = (
            [value if math.isfinite(value) else None for value in column.tolist()]
            for column in (self.least, self.greatest, mean)
        )
        missing = self.missing.astype(int).tolist()
        return Curve(first, stop, self.width, end, least, greatest, middle, missing)
