"""A state as bytes: the entries of its tree and its file, from the tensors' own memory and one spelling of all else."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labapex.errors import MalformedInput, TrainingFailed
from labapex.proof import merkle
from labapex.proof.statefile import CHUNK, spelled

_LEAF = hashlib.sha256(b"\x00")  # a leaf's hash so far; a copy costs less than a hash from the beginning
_WRITTEN = 1 << 20  # bytes at a time: one write of a hundred megabytes costs ten times as much as a hundred of one
FILE_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class Shapes:
    """Names, types and shapes of tensors, and what follows from them alone: in a long run it is the same at each leaf."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.known = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        # As tensors follow each other in streams and files: the widest types first, so that each element is aligned.
        self.order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        ends = list(itertools.accumulate((tensors[name].nbytes for name in self.order), initial=0))
        self.places = {name: slice(*ends[n : n + 2]) for n, name in enumerate(self.order)}
        self.size = ends[-1]  # bytes of all tensors

    def fit(self, tensors: dict[str, Tensor]) -> bool:
        return list(self.known) == list(tensors) and all(
            (t.dtype, t.shape) == known for t, known in zip(tensors.values(), self.known.values(), strict=True)
        )

    @cached_property
    def text(self) -> bytes:
        """What a tree's header says of the tensors."""
        return spelled([[name, str(kind), list(shape)] for name, (kind, shape) in sorted(self.known.items())])

    @cached_property
    def entries(self) -> str:
        """What a safetensors header says of the tensors, a comma before each.

        Raises `TrainingFailed` for a type of tensor that the format does not have."""
        said = []
        for name in self.order:
            kind, shape = self.known[name]
            if kind not in FILE_TYPES:
                raise TrainingFailed(f"{name} is of type {kind}, which no state file can hold: keep another type")
            place = self.places[name]
            entry = {"dtype": FILE_TYPES[kind], "shape": list(shape), "data_offsets": [place.start, place.stop]}
            said.append(f",{json.dumps(name)}:{json.dumps(entry, separators=(',', ':'))}")
        return "".join(said)


class Block(dict[str, Tensor]):
    """Tensors in one piece of memory, as they lie in a state's file: hashed and written without a step for each."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        whole = torch.empty(shapes.size, dtype=torch.uint8)
        self.memory = raw_bytes(whole)
        super().__init__(
            {n: whole[shapes.places[n]].view(kind).reshape(shape) for n, (kind, shape) in shapes.known.items()}
        )

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        raise TypeError("the tensors of a block are overwritten, not exchanged")


class Image:
    """The bytes of one state. Raises `MalformedInput` for a structure that has no canonical form."""

    def __init__(self, structure: dict[str, Any], tensors: dict[str, Tensor], parameters: list[str]) -> None:
        self.own = set(parameters)
        if isinstance(tensors, Block):
            self.shapes = tensors.shapes
            self.raw = {name: tensors.memory[place] for name, place in self.shapes.places.items()}
            self.pieces = [tensors.memory]
        else:
            self.shapes = Shapes(tensors)
            self.raw = {name: raw_bytes(tensors[name]) for name in self.shapes.order}
            self.pieces = list(self.raw.values())
        try:
            self.structure, self.parameters = spelled(structure), spelled(sorted(parameters))
            self.content = b'{"parameters":%b,"structure":%b,"tensors":%b}' % (
                self.parameters, self.structure, self.shapes.text,
            )  # fmt: skip
        except (ValueError, RecursionError) as error:  # NaN, integers over 2^53, lone surrogates, endless nesting
            raise MalformedInput(f"the state's structure has no canonical form: {type(error).__name__}") from None

    def tree(self) -> list[bytes]:
        """The tree's leaf hashes, SHA-256(0x00 | entry): of the header, of the parameters' chunks, of the others'."""
        own = [name for name in self.shapes.order if name in self.own]
        others = [name for name in self.shapes.order if name not in self.own]
        return [merkle.leaf_hash(self.content), *self._hashes(own), *self._hashes(others)]

    def _hashes(self, names: Iterable[str]) -> Iterator[bytes]:
        """The leaf hashes of one stream's chunks, whose bytes are not copied for it."""
        leaf, room = _LEAF.copy(), CHUNK
        for name in names:
            raw, at = self.raw[name], 0
            while part := raw[at : at + room]:
                leaf.update(part)
                at, room = at + len(part), room - len(part)
                if not room:
                    yield leaf.digest()
                    leaf, room = _LEAF.copy(), CHUNK
        if room < CHUNK:
            yield leaf.digest()

    @cached_property
    def header(self) -> bytes:
        """What a safetensors file begins with, its own length first. Raises `TrainingFailed` as `Shapes.entries` does."""
        metadata = json.dumps({"structure": self.structure.decode(), "parameters": self.parameters.decode()})
        text = f'{{"__metadata__":{metadata}{self.shapes.entries}}}'.encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of the file. Raises `TrainingFailed` as `header` does."""
        return len(self.header) + self.shapes.size

    def save(self, path: Path) -> int:
        """Write the state as safetensors, atomically, straight from the tensors' memory; returns the file's size in bytes.

        Raises `TrainingFailed` as `header` does."""
        size, temporary = self.size, path.with_suffix(".partial")
        with temporary.open("wb", buffering=1 << 18) as file:
            file.write(self.header)
            for piece in self.pieces:
                for at in range(0, len(piece), _WRITTEN):
                    file.write(piece[at : at + _WRITTEN])
        temporary.replace(path)
        return size


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy, in row-major order."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy().data).cast("B")
