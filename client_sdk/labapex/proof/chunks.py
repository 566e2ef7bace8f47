"""One chunk of the parameters, opened in every state that a host keeps: what the updates were, and not what is said of them.

A leaf's state is a tree in which the parameters' bytes have fixed places, so the same 16 KiB can be shown of all states of a
run, each with its audit path. Their change from state to state is a part of the whole update's l2 norm: a claim below it is
a lie, and times sqrt(all bytes / chunk's bytes) it ranks the updates. Which chunk is asked for is drawn after the last leaf.

An answer is, for each leaf asked, the chunk and then the path's hashes of 32 bytes; every length follows from contract and
leaves. Bytes alone: no tensors here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

from labapex.errors import MalformedInput, Tampered
from labapex.proof import merkle, statefile
from labapex.proof.statefile import CHUNK, Layout
from labapex.protocol.contract import Contract, Stretch
from labapex.protocol.records import Leaf

_FIRST = 1  # the tree's entry with the parameters' first chunk: the header is entry 0
_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # types whose values are looked at
_CODES = {"float64": "d", "float32": "f", "float16": "e"}


@dataclass(frozen=True)
class Change:
    """The l2 norm of the chunk's change from leaf `start` to leaf `stop`; None where it is not finite."""

    start: int
    stop: int
    norm: float | None


@dataclass(frozen=True)
class Measured:
    """What was seen of a run's updates in `share` of the parameters' bytes."""

    share: float
    changes: tuple[Change, ...]


def count(layout: Sequence[Stretch]) -> int:
    """How many chunks the parameters have; 0 where none of their types can be looked at."""
    known = any(stretch.type in _WIDTHS for stretch in layout)
    return -(-_total(layout) // CHUNK) if known else 0


def asked(contract: Contract, leaves: Sequence[Leaf]) -> tuple[int, ...]:
    """The leaves of which a chunk is asked: those whose states the host keeps, as long as updates are claimed to be finite.

    Where parameters come, go or change their shape a leaf claims no norm, and no chunk has its place any more. Who claims so
    falsely has that segment replayed."""
    end = next((leaf.index for leaf in leaves[1:] if leaf.update_norm is None), len(leaves))
    return tuple(sorted(n for n in contract.kept_leaves() if n < end))


def answer_size(contract: Contract, leaves: Sequence[Leaf], number: int) -> int:
    """Bytes of a whole answer. Raises `Tampered` where a leaf's tree is too small to hold the parameters."""
    return sum(sum(_sizes(contract, leaves[index], number)) for index in asked(contract, leaves))


def held_size(contract: Contract, leaves: Sequence[Leaf], number: int) -> int:
    """Bytes at an answer's beginning that come from states of earlier hosts, which the platform holds."""
    held = contract.held.intersection(asked(contract, leaves))
    return sum(sum(_sizes(contract, leaves[index], number)) for index in held)


def chunk(state: IO[bytes], found: Layout, number: int) -> bytes:
    """Chunk `number` of the parameters that a state file holds."""
    return statefile.part(state, found.stream(found.parameters), number * CHUNK, (number + 1) * CHUNK)


def show(state: IO[bytes], tree: bytes, number: int) -> bytes:
    """One leaf's part of an answer: from its state file, and the leaf hashes that were written beside it.

    Raises `MalformedInput` where they do not belong together."""
    shown = chunk(state, statefile.layout(state), number)
    hashes = [tree[at : at + merkle.HASH_BYTES] for at in range(0, len(tree), merkle.HASH_BYTES)]
    place = _FIRST + number
    if place >= len(hashes) or merkle.leaf_hash(shown) != hashes[place]:
        raise MalformedInput(f"the tree beside the state is not the state's: its entry {place} differs")
    return shown + b"".join(merkle.audit_path(hashes, place))


def check(contract: Contract, leaves: Sequence[Leaf], number: int, answer: IO[bytes]) -> Measured:
    """What an answer shows. Raises `MalformedInput` or `Tampered` with the leaf whose chunk is missing or another one."""
    return measure(contract, number, _checked(contract, leaves, number, answer))


def measure(contract: Contract, number: int, chunks: Iterator[tuple[int, bytes]]) -> Measured:
    """What the chunks of leaves, in their order, show of the updates between them.

    Raises `MalformedInput` for a chunk that is not as long as the contract's layout has it."""
    layout = contract.facts.layout
    values = ((index, _values(layout, number, chunk)) for index, chunk in chunks)
    changes = tuple(Change(a, b, _distance(before, after)) for (a, before), (b, after) in pairwise(values))
    return Measured(_size(layout, number) / _total(layout), changes)


def updates(leaves: Sequence[Leaf], measured: Measured | None) -> list[float]:
    """How large the update of each segment was, by its number: as measured, else as claimed; what is not finite is endless.

    Where states between were not kept, each segment there counts as an equal part."""
    found = [_size_of(leaf.update_norm) for leaf in leaves[1:]]
    for change in measured.changes if measured is not None else ():
        whole = _size_of(change.norm) / math.sqrt(measured.share) if measured is not None else 0.0
        for segment in range(change.start, change.stop):
            found[segment] = whole / (change.stop - change.start)
    return found


def understated(leaves: Sequence[Leaf], measured: Measured, *, tolerance: float) -> list[int]:
    """Leaves that claim a smaller update than what the chunk alone shows (between kept states: than all claims together)."""
    wrong = []
    for change in measured.changes:
        claimed = [leaf.update_norm for leaf in leaves[change.start + 1 : change.stop + 1]]
        most = math.fsum(math.inf if norm is None else norm for norm in claimed)
        if not _size_of(change.norm) <= most * (1 + tolerance):
            wrong.append(change.stop)
    return wrong


def _checked(contract: Contract, leaves: Sequence[Leaf], number: int, answer: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for index in asked(contract, leaves):
        leaf = leaves[index]
        size, rest = _sizes(contract, leaf, number)
        data = answer.read(size + rest)
        if len(data) != size + rest:
            raise MalformedInput(f"the chunks end early, at that of leaf {index}")
        path = [data[at : at + merkle.HASH_BYTES] for at in range(size, len(data), merkle.HASH_BYTES)]
        try:
            merkle.verify_inclusion(
                data[:size], index=_FIRST + number, size=leaf.chunks, proof=path, root=bytes.fromhex(leaf.state)
            )
        except Tampered:
            raise Tampered(f"the chunk of leaf {index} is not in the state that was committed to") from None
        yield index, data[:size]
    if answer.read(1):
        raise MalformedInput("more chunks came than were asked for")


def _sizes(contract: Contract, leaf: Leaf, number: int) -> tuple[int, int]:
    """Bytes of a leaf's chunk and of its path."""
    if leaf.chunks < _FIRST + count(contract.facts.layout):
        raise Tampered(f"leaf {leaf.index} claims a tree of {leaf.chunks} entries, too few to hold the parameters")
    return _size(contract.facts.layout, number), merkle.HASH_BYTES * merkle.path_length(_FIRST + number, leaf.chunks)


def _values(layout: Sequence[Stretch], number: int, data: bytes) -> list[float]:
    """The numbers that lie wholly in a chunk, of the types that can be looked at. Raises `MalformedInput`."""
    if len(data) != _size(layout, number):
        raise MalformedInput(f"a chunk of {len(data)} bytes; {_size(layout, number)} are due by the contract")
    values: list[float] = []
    begin, at = number * CHUNK, 0
    for stretch in layout:
        first, last = max(begin, at), min(begin + len(data), at + stretch.size)
        if first < last and (width := _WIDTHS.get(stretch.type)):
            first += (at - first) % width
            last -= (last - first) % width
            values += _decoded(stretch.type, data[first - begin : last - begin])
        at += stretch.size
    return values


def _decoded(kind: str, data: bytes) -> Sequence[float]:
    if kind == "bfloat16":  # the upper half of a float32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        kind, data = "float32", bytes(wide)
    return struct.unpack(f"<{len(data) // _WIDTHS[kind]}{_CODES[kind]}", data)


def _distance(before: Sequence[float], after: Sequence[float]) -> float | None:
    change = math.dist(before, after)
    return change if math.isfinite(change) else None


def _size_of(norm: float | None) -> float:
    return math.inf if norm is None else norm


def _size(layout: Sequence[Stretch], number: int) -> int:
    return min(CHUNK, _total(layout) - number * CHUNK)


def _total(layout: Sequence[Stretch]) -> int:
    return sum(stretch.size for stretch in layout)
