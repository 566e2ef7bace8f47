"""Which nodes of the log's tree a root or a proof is made of, so that each costs O(log n) however long the log is.

A node (level, position) is the root over the full run of leaves [position * 2^level, (position + 1) * 2^level). Once its
last leaf is there it never changes, so it is stored once. Everything else is folded from such nodes (RFC 6962, 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from labapex.proof.merkle import node_hash

Node = tuple[int, int]  # level, position
Run = tuple[int, int]  # leaves from, to (exclusive)


def completed(index: int) -> list[int]:
    """Levels above 0 of the nodes that leaf `index` completes, lowest first. Each has position `index >> level`."""
    levels = []
    level = 1
    while (index + 1) % (1 << level) == 0:
        levels.append(level)
        level += 1
    return levels


def nodes(run: Run) -> list[Node]:
    """The full nodes that a run of leaves is made of, largest first. The run begins where a tree of its size may."""
    start, stop = run
    found = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def fold(run: Run, hash_of: Callable[[Node], bytes]) -> bytes:
    """The root over a run of at least one leaf."""
    hashes = [hash_of(node) for node in nodes(run)]
    top = hashes.pop()
    while hashes:
        top = node_hash(hashes.pop(), top)
    return top


def inclusion(index: int, size: int) -> list[Run]:
    """The runs whose roots are the audit path of a leaf, from the leaf upwards (RFC 6962, 2.1.1)."""
    path: list[Run] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append((middle, stop))
            stop = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency(first: int, second: int) -> list[Run]:
    """The runs whose roots prove that a log of `second` leaves begins with one of `first` > 0 (RFC 6962, 2.1.2)."""
    path: list[Run] = []
    start, stop, whole = 0, second, True
    while stop != first:
        middle = start + _split(stop - start)
        if first <= middle:
            path.append((middle, stop))
            stop = middle
        else:
            path.append((start, middle))
            start, whole = middle, False
    if not whole:
        path.append((start, stop))
    return path[::-1]


def needed(runs: Iterable[Run]) -> set[Node]:
    return {node for run in runs for node in nodes(run)}


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)
