"""Which stretches must be run so that given segments are passed, where not every leaf's state is at hand. No tensors here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from typing import NamedTuple


class Run(NamedTuple):
    """From the state of leaf `leaf`, which is put in, to leaf `stop`; every segment on the way is passed."""

    leaf: int
    stop: int


def runs(wanted: Collection[int], here: Collection[int]) -> list[Run]:
    """The runs that pass the segments `wanted`: each from the nearest leaf, at or before it, whose state is `here`.

    A segment is named by the leaf it begins with. One that no leaf of `here` precedes is in no run."""
    starts = sorted(here)
    stops: dict[int, int] = {}
    for segment in sorted(wanted):
        place = bisect_right(starts, segment)
        if place:
            stops[starts[place - 1]] = segment + 1
    return [Run(leaf, stop) for leaf, stop in stops.items()]
