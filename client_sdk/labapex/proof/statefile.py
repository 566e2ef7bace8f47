"""State files without tensors: the header of a safetensors file, and the tree that its content is committed to by.

A file comes from a worker or lies where a script can write: nothing is read before its size is known to be bearable, and what is
laid out in any other way than the format's is `MalformedInput`.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import IO, Any, NoReturn

from labapex.errors import MalformedInput
from labapex.proof import merkle
from labapex.protocol.canonical import canonical
from labapex.protocol.contract import Stretch

CHUNK = 16 * 1024  # bytes of one entry of a state's tree
MAX_HEADER = 100 << 20  # the format's own limit
MAX_DIMENSIONS = 64  # torch's own; the product of any number of sizes of any length would take for ever
_SIZES = 2**63
_SAFE_INTEGER = 2**53 - 1
_BLOCK = 64 * CHUNK
_TYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1),
    "BOOL": ("bool", 1), "C64": ("complex64", 8), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor. `start` and `stop` are offsets in the file."""

    type: str  # as torch names it: "float32"
    width: int  # bytes of an element
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """What stands in a file's header."""

    tensors: dict[str, Entry]
    metadata: dict[str, Any]

    @property
    def parameters(self) -> list[str]:
        """The tensors that an optimizer trains. Raises `MalformedInput`."""
        names = self._document("parameters")
        if not isinstance(names, list) or not all(isinstance(n, str) and n in self.tensors for n in names):
            raise MalformedInput("the state's list of parameters names what it does not hold")
        return names

    @property
    def structure(self) -> dict[str, Any]:
        """All that is no tensor. Raises `MalformedInput`."""
        structure = self._document("structure")
        if not isinstance(structure, dict):
            raise MalformedInput("the state's structure is no mapping")
        return structure

    def stream(self, names: Iterable[str]) -> list[Entry]:
        """Tensors as they follow each other in a stream: the widest elements first, then by name."""
        order = sorted(set(names), key=lambda name: (-self.tensors[name].width, name))
        return [self.tensors[name] for name in order]

    def stretches(self) -> tuple[Stretch, ...]:
        """The types in the parameters' stream, each with its bytes: `ScriptFacts.layout`. Raises `MalformedInput`."""
        runs = groupby(self.stream(self.parameters), key=lambda entry: entry.type)
        sizes = [(kind, sum(entry.stop - entry.start for entry in entries)) for kind, entries in runs]
        return tuple(Stretch(type=kind, size=size) for kind, size in sizes if size)

    def _document(self, key: str) -> Any:
        text = self.metadata.get(key)
        try:
            return json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            raise MalformedInput(f"the state's {key} is no JSON") from None


def layout(file: IO[bytes]) -> Layout:
    """The layout of a state file: tensors that cover it exactly. Raises `MalformedInput`."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise MalformedInput("the state is no safetensors file: its header has an impossible length")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise MalformedInput("the state is no safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise MalformedInput("the state is no safetensors file: its header is no mapping")
    metadata = header.pop("__metadata__", {})
    tensors = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for entry in sorted(tensors.values(), key=lambda each: (each.start, each.stop)):
        if entry.start != end:
            raise MalformedInput("the state is no safetensors file: its tensors overlap or leave a gap")
        end = entry.stop
    if end != size:
        raise MalformedInput("the state is no safetensors file: its tensors do not cover it")
    return Layout(tensors, metadata if isinstance(metadata, dict) else {})


def tree(file: IO[bytes]) -> list[bytes]:
    """The leaf hashes of the tree over a state file's content (`merkle.root_of_hashes` gives its digest).

    Raises `MalformedInput` for what has no tree."""
    found = layout(file)
    own = found.parameters
    shapes = [[n, f"torch.{found.tensors[n].type}", list(found.tensors[n].shape)] for n in sorted(found.tensors)]
    try:
        header = spelled({"structure": found.structure, "tensors": shapes, "parameters": sorted(own)})
    except (ValueError, RecursionError) as error:  # NaN, integers over 2^53, lone surrogates, endless nesting
        raise MalformedInput(f"the state's structure has no canonical form: {type(error).__name__}") from None
    streams = (found.stream(own), found.stream(found.tensors.keys() - set(own)))
    chunks = (chunk for stream in streams for chunk in _chunks(file, stream))
    return [merkle.leaf_hash(header), *map(merkle.leaf_hash, chunks)]


def part(file: IO[bytes], stream: list[Entry], start: int, stop: int) -> bytes:
    """Bytes `start` .. `stop` - 1 of a stream; fewer where it is shorter."""
    pieces, at = [], 0
    for entry in stream:
        size = entry.stop - entry.start
        first, last = max(start - at, 0), min(stop - at, size)
        if first < last:
            file.seek(entry.start + first)
            pieces.append(file.read(last - first))
        at += size
    return b"".join(pieces)


def spelled(document: dict[str, Any] | list[Any]) -> bytes:
    """`canonical(document)`, ten times as fast where Python's own JSON has the same spelling: no floats, ASCII only.

    Reading the text back shows that it says the same, so keys were strings and integers were small; all else, and all
    that must be refused, goes the slow way.
    """
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        same = text.isascii() and json.loads(text, parse_float=_unlike, parse_int=_small, parse_constant=_unlike)
    except (ValueError, TypeError, RecursionError):
        return canonical(document)
    return text.encode() if same == document else canonical(document)


def _chunks(file: IO[bytes], stream: list[Entry]) -> Iterator[bytes]:
    total, at = sum(entry.stop - entry.start for entry in stream), 0
    pending = bytearray()
    for entry in stream:
        file.seek(entry.start)
        left = entry.stop - entry.start
        while left and (data := file.read(min(_BLOCK, left))):
            left, at = left - len(data), at + len(data)
            pending += data
            whole = len(pending) if at == total else len(pending) - len(pending) % CHUNK
            for start in range(0, whole, CHUNK):
                yield bytes(pending[start : min(whole, start + CHUNK)])
            del pending[:whole]


def _entry(name: str, entry: Any, base: int) -> Entry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if len(entry) == 3:
            whole = all(type(n) is int and 0 <= n < _SIZES for n in (*shape, start, stop))
            kind, width = _TYPES.get(dtype, ("", 0))
            if whole and len(shape) <= MAX_DIMENSIONS and kind and prod(shape) * width == stop - start:
                return Entry(kind, width, tuple(shape), base + start, base + stop)
    raise MalformedInput(f"the state is no safetensors file: the entry {name[:80]!r} is malformed")


def _unlike(text: str) -> NoReturn:
    raise ValueError(text)


def _small(digits: str) -> int:
    value = int(digits)
    if abs(value) > _SAFE_INTEGER:
        raise ValueError(digits)
    return value
