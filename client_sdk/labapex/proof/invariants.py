"""What a replay never changes: states of one run compared with each other, and the one segment found where they part.

A replay believes its start. Who exchanges a state once (other data, a pruned layer, another setting) and trains honestly from
there is found out only by that one segment. But much in a state changes rarely: data, settings, shapes, which rows of
a matrix are nothing but zeros. Where such an entry differs between two opened states, it was changed somewhere between them:
by the script, at an epoch's end for example, or not. So the state half-way is asked for, again and again, until one segment
is left, and that is replayed: what the script does comes out again, an exchange does not.

Cannot see entries that change all the time anyway, nor an exchange that is spread over more than a few segments.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from labapex.proof.entries import entries
from labapex.proof.evidence import Evidence, Further

RARE = 4  # stretches between opened states in which an entry, or its like, may change to be searched for
SEARCHES = 4  # at a time
_QUIET = 8  # an entry that changed often has ceased to when it stays as it is for the last such part of the run
_QUIET_STRETCHES = 3  # and for so many stretches at least
_NUMBERS = re.compile(r"/[\d.]+(?=/|$)")


def exchanged(evidence: Evidence, opened: Mapping[int, Path]) -> Further:
    """A doubt: where the opened states differ in what changes rarely, and no replay has shown why."""
    per_epoch = evidence.contract.facts.iterations_per_epoch
    return searches(
        {index: _entries(path, evidence.leaves[index].state) for index, path in opened.items()},
        evidence.asked,
        turns=[leaf.index for leaf in evidence.leaves if leaf.step and leaf.step % per_epoch == 0],
        keep=evidence.contract.keep_every,
    )


def searches(
    opened: Mapping[int, Mapping[str, bytes]], replayed: Collection[int], *, turns: Collection[int] = (), keep: int = 1
) -> Further:
    """The states to be opened next, or the segments to be replayed, for the `SEARCHES` rarest changes that nothing explains.

    `opened`: entries of states, by leaf. `turns`: leaves at which an epoch ends, where scripts change most; they are tried
    first. Only each `keep`-th leaf's state is at hand at no cost: others are asked for where none of these lies between.
    A stretch that is already short is followed before others, so that what was begun is ended.
    """
    doubtful = [
        (rarity, stop - start, start, stop)
        for (start, stop), rarity in rare_changes(opened).items()
        if stop - start > 1 or start not in replayed
    ]
    indices, segments = set[int](), set[int]()
    for _, length, start, stop in sorted(doubtful)[:SEARCHES]:
        if length == 1:
            segments.add(start)
        else:
            indices.add(_between(start, stop, turns, keep))
    return Further(frozenset(indices), frozenset(segments))


def rare_changes(opened: Mapping[int, Mapping[str, bytes]]) -> dict[tuple[int, int], int]:
    """Stretches between neighbouring opened states in which an entry changed that hardly ever does, with its changes in all.

    An entry that is not in both states is not compared: that it came or went is a change of what it belongs to. Entries
    that differ in nothing but numbers in their names are alike; where many of these change, each at a time of its own, as
    in a buffer that turns over, that is no rare change.
    """
    leaves = sorted(opened)
    compared: dict[str, int] = defaultdict(int)
    changes: dict[str, list[int]] = defaultdict(list)
    for number, (start, stop) in enumerate(pairwise(leaves)):
        before, after = opened[start], opened[stop]
        for name in before.keys() & after.keys():
            compared[name] += 1
            if before[name] != after[name]:
                changes[name].append(number)
    rare: dict[str, list[int]] = {}
    for name, numbers in changes.items():
        if len(numbers) <= RARE and 2 * len(numbers) <= compared[name]:
            rare[name] = numbers
        elif name in opened[leaves[-1]] and _ceased(leaves, numbers[-1]):
            rare[name] = numbers[-1:]
    places: dict[str, set[int]] = defaultdict(set)
    for name, numbers in rare.items():
        places[_NUMBERS.sub("/*", name)] |= set(numbers)
    found: dict[tuple[int, int], int] = {}
    for alike in places.values():
        for number in alike if len(alike) <= RARE else ():
            stretch = leaves[number], leaves[number + 1]
            found[stretch] = min(found.get(stretch, RARE), len(alike))
    return found


def _ceased(leaves: list[int], last: int) -> bool:
    """Whether a long time followed the stretch of that number."""
    return (
        len(leaves) - 2 - last >= _QUIET_STRETCHES
        and (leaves[-1] - leaves[last + 1]) * _QUIET >= leaves[-1] - leaves[0]
    )


def _between(start: int, stop: int, turns: Iterable[int], keep: int) -> int:
    """The leaf between two that is asked for: beside an epoch's end if there is one, near the middle, and kept if it can be."""
    if (start // keep + 1) * keep >= stop:
        keep = 1
    beside = {leaf for turn in turns for leaf in ((turn - 1) // keep * keep, -(-turn // keep) * keep)}
    inside = [leaf for leaf in beside if start < leaf < stop]
    if inside:
        return min(inside, key=lambda leaf: (abs(2 * leaf - start - stop), leaf))
    middle = (start + stop) // 2 // keep * keep
    return middle if middle > start else middle + keep


@lru_cache(maxsize=256)
def _entries(path: Path, state: str) -> Mapping[str, bytes]:
    """The entries of a file that was found to hold the state of that digest."""
    return entries(path)
