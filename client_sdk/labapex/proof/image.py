"""A state as bytes: the entries of its tree and its file, from the tensors' own memory and one spelling of all else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from labapex.errors import MalformedInput
from labapex.proof import merkle, pages
from labapex.proof.block import Block, Shapes, raw_bytes
from labapex.proof.pages import Pages
from labapex.proof.statefile import CHUNK, spelled

_LEAF = hashlib.sha256(b"\x00")  # a leaf's hash so far; a copy costs less than a hash from the beginning
_COMPARED = 4 * CHUNK  # bytes of a tensor from which it is compared with that of the leaf before
_WRITTEN = 1 << 20  # bytes at a time: one write of a hundred megabytes costs ten times as much as a hundred of one
_LARGE = 1 << 20  # bytes of tensors from which a file goes past the kernel's cache, which answers sooner than a disk


class Image:
    """The bytes of one state. Raises `MalformedInput` for a structure that has no canonical form."""

    def __init__(self, structure: dict[str, Any], tensors: dict[str, Tensor], parameters: list[str]) -> None:
        self.block = tensors if isinstance(tensors, Block) and tensors.shapes.parameters == sorted(parameters) else None
        self.shapes = self.block.shapes if self.block is not None else Shapes(tensors, parameters)
        self.tensors = tensors
        try:
            self.structure = spelled(structure)
            self.content = b'{"parameters":%b,"structure":%b,"tensors":%b}' % (
                self.shapes.named, self.structure, self.shapes.text,
            )  # fmt: skip
        except (ValueError, RecursionError) as error:  # NaN, integers over 2^53, lone surrogates, endless nesting
            raise MalformedInput(f"the state's structure has no canonical form: {type(error).__name__}") from None

    def tree(self, before: Image | None = None) -> list[bytes]:
        """The tree's leaf hashes, SHA-256(0x00 | entry): of the header, of the parameters' chunks, of the others'.

        `before`: another image of the same run whose tree was made and whose memory still holds; what is equal there is not
        hashed again."""
        self.leaves = [merkle.leaf_hash(self.content)]
        for names, runs in zip(self.shapes.streams, self.shapes.runs, strict=True):
            same = self._equal(before, names) if before is not None else ()
            known = (
                {n: before.leaves[len(self.leaves) + n] for chunks in same for n in chunks}
                if before is not None
                else {}
            )
            self.leaves += _hashes(self._pieces(runs), known)
        return self.leaves

    def _equal(self, before: Image, names: list[str]) -> Iterator[range]:
        """The chunks of a stream that are equal in both images, as far as that shows in tensors that are wholly so."""
        if self.block is None or before.block is None or before.shapes is not self.shapes:
            return
        begin = end = 0  # of the stretch of equal tensors that is looked at
        for name in names:
            size = self.block[name].nbytes
            if not ((size >= _COMPARED or begin < end) and self.block.equal(before.block, name)):
                yield range(-(-begin // CHUNK), end // CHUNK)
                begin = end + size
            end += size
        yield range(-(-begin // CHUNK), -(-end // CHUNK))

    def _pieces(self, runs: list[list[str]]) -> list[memoryview]:
        """The bytes of tensors that follow one another."""
        if self.block is None:
            return [raw_bytes(self.tensors[name]) for run in runs for name in run]
        return [self.block.memory.bytes[self.shapes.piece(run)] for run in runs]

    @cached_property
    def header(self) -> bytes:
        """What a safetensors file begins with, its own length first. Raises `TrainingFailed` as `Shapes.entries` does."""
        metadata = json.dumps({"structure": self.structure.decode(), "parameters": self.shapes.named.decode()})
        text = f'{{"__metadata__":{metadata}{self.shapes.entries}}}'.encode()
        text = text.ljust(pages.padded(8 + len(text)) - 8)  # so that the tensors begin with a page
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of the file. Raises `TrainingFailed` as `header` does."""
        return len(self.header) + self.shapes.size

    def save(self, path: Path) -> int:
        """Write the state as safetensors, atomically, straight from the tensors' memory; returns the file's size in bytes.

        Raises `TrainingFailed` as `header` does."""
        temporary = path.with_suffix(".partial")
        if not self._save_past_the_cache(temporary):
            with temporary.open("wb", buffering=1 << 18) as file:
                file.write(self.header)
                for piece in self._pieces([self.shapes.order] if self.shapes.order else []):
                    for at in range(0, len(piece), _WRITTEN):
                        file.write(piece[at : at + _WRITTEN])
        temporary.replace(path)
        return self.size

    def _save_past_the_cache(self, path: Path) -> bool:
        if self.block is None or self.shapes.size < _LARGE:
            return False
        head = Pages(len(self.header))
        head.bytes[:] = self.header
        return pages.write(path, head, self.block.memory)


def _hashes(pieces: Iterable[memoryview], known: Mapping[int, bytes]) -> Iterator[bytes]:
    """The leaf hashes of one stream's chunks, whose bytes are not copied for it; of some they are known, by number."""
    number, leaf, room = 0, _LEAF.copy(), CHUNK
    for piece in pieces:
        at = 0
        while part := piece[at : at + room]:
            if number not in known:
                leaf.update(part)
            at, room = at + len(part), room - len(part)
            if not room:
                yield known.get(number) or leaf.digest()
                number, leaf, room = number + 1, _LEAF.copy(), CHUNK
    if room < CHUNK:
        yield known.get(number) or leaf.digest()
