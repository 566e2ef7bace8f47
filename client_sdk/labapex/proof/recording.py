"""A recording on disk while it goes on, so that another process can go on with it. No tensors here.

`leaves.jsonl` has a line a leaf, written once its state is there; `losses.f64` and `times.f64` an entry an iteration, written
before the leaf that commits to it. States lie in `states/`, of each leaf that is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from labapex.errors import MalformedInput
from labapex.proof.folder import MAX_DOCUMENT, opened
from labapex.protocol.canonical import canonical, digest, parse
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf

LEAVES, LOSSES, TIMES = FILES = "leaves.jsonl", "losses.f64", "times.f64"


class Log:
    """A sink that writes each record as it comes: unbuffered, so that a script that forks never writes one twice."""

    def __init__(self, folder: Path, after: Sequence[Leaf] = ()) -> None:
        """Begin a log, or go on behind the last of its leaves `after`: what was written later is made again."""
        done = 8 * after[-1].step if after else 0
        self._leaves = _cut(folder / LEAVES, sum(len(_line(leaf)) for leaf in after))
        self._losses, self._times = _cut(folder / LOSSES, done), _cut(folder / TIMES, done)

    def iteration(self, step: int, loss: float, at: float) -> None:
        self._losses.write(struct.pack("<d", loss))
        self._times.write(struct.pack("<d", at))

    def leaf(self, leaf: Leaf) -> None:
        self._leaves.write(_line(leaf))

    def scalars(self, values: Mapping[str, float]) -> None:
        """No state is made of them."""

    def close(self) -> None:
        for file in (self._leaves, self._losses, self._times):
            file.close()


def leaves(folder: Path) -> list[Leaf]:
    """The leaves that a log holds; a last line that is not whole does not count. Raises `MalformedInput`."""
    with opened(folder, LEAVES) as file:
        data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise MalformedInput(f"{LEAVES} has more than {MAX_DOCUMENT} bytes")
    return [parse(Leaf, line, limit=MAX_DOCUMENT) for line in data.split(b"\n")[:-1]]


def resumable(folder: Path, contract: Contract) -> list[Leaf]:
    """The leaves up to the last one from whose state the recording can go on; none where it has to begin anew.

    That the state is the committed one is found out when it is loaded. Raises `MalformedInput` for a log of another run."""
    prev, kept, last = digest(contract), contract.kept_leaves(), -1
    found = leaves(folder) if (folder / LEAVES).exists() else []
    for index, leaf in enumerate(found):
        if (leaf.index, leaf.prev) != (index, prev):
            raise MalformedInput(f"{LEAVES}: leaf {index} does not follow the one before it")
        prev = leaf.digest()
        if index in kept and (folder / "states" / f"{index}.safetensors").exists():
            last = index
    return found[: last + 1]


def _line(leaf: Leaf) -> bytes:
    return canonical(leaf) + b"\n"


def _cut(path: Path, size: int) -> BinaryIO:
    """A file whose first `size` bytes are kept, to be written on from there. Raises `MalformedInput` where it has fewer."""
    path.touch(mode=0o600)
    file = path.open("r+b", buffering=0)
    if file.seek(0, 2) < size:
        file.close()
        raise MalformedInput(f"{path.name} is shorter than its leaves say")
    file.truncate(size)
    file.seek(size)
    return file
