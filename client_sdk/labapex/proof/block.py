"""Tensors in one piece of memory, as they follow each other in a state's file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from functools import cached_property

import torch
from torch import Tensor

from labapex.errors import TrainingFailed
from labapex.proof.pages import Pages
from labapex.proof.statefile import spelled

FILE_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
_GLANCE = 64  # bytes


class Shapes:
    """Names, types and shapes of tensors, which of them are trained, and what follows from that alone: in a long run it is the
    same at each leaf."""

    def __init__(self, tensors: dict[str, Tensor], parameters: Collection[str]) -> None:
        self.known = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        self.parameters = sorted(parameters)
        own = set(parameters)
        # The widest types first, so that each element is aligned; of one width the trained ones, so that they are in one piece.
        self.order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name not in own, name))
        self.streams = [n for n in self.order if n in own], [n for n in self.order if n not in own]
        ends = list(itertools.accumulate((tensors[name].nbytes for name in self.order), initial=0))
        self.places = {name: slice(*ends[n : n + 2]) for n, name in enumerate(self.order)}
        self.size = ends[-1]  # bytes of all tensors

    def fit(self, tensors: dict[str, Tensor], parameters: Collection[str]) -> bool:
        return (
            list(self.known) == list(tensors)
            and self.parameters == sorted(parameters)
            and all((t.dtype, t.shape) == known for t, known in zip(tensors.values(), self.known.values(), strict=True))
        )

    @cached_property
    def runs(self) -> tuple[list[list[str]], list[list[str]]]:
        """Both streams, cut where the type changes: each part lies in one piece."""
        own, others = (
            [list(run) for _, run in itertools.groupby(s, key=lambda n: self.known[n][0])] for s in self.streams
        )
        return own, others

    def piece(self, run: list[str]) -> slice:
        """The bytes of one run."""
        return slice(self.places[run[0]].start, self.places[run[-1]].stop)

    @cached_property
    def text(self) -> bytes:
        """What a tree's header says of the tensors."""
        return spelled([[name, str(kind), list(shape)] for name, (kind, shape) in sorted(self.known.items())])

    @cached_property
    def named(self) -> bytes:
        """What it says of the trained ones."""
        return spelled(self.parameters)

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
    """Tensors by name, over one piece of memory: hashed, compared and written without a step for each."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.memory = Pages(shapes.size)
        whole = self.memory.tensor
        super().__init__(
            {n: whole[shapes.places[n]].view(kind).reshape(shape) for n, (kind, shape) in shapes.known.items()}
        )

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        raise TypeError("the tensors of a block are overwritten, not exchanged")

    def equal(self, other: Block, name: str) -> bool:
        """Whether a tensor is the same, bit for bit, in another block of the same shapes."""
        place = self.shapes.places[name]
        one, two = self.memory.bytes[place], other.memory.bytes[place]
        if one[:_GLANCE] != two[:_GLANCE] or one[-_GLANCE:] != two[-_GLANCE:]:
            return False  # most that changed at all changed there
        whole = _INTEGERS[self[name].element_size() if (place.start | place.stop) % 8 else 8]
        return torch.equal(self.memory.tensor[place].view(whole), other.memory.tensor[place].view(whole))

    def flat(self, run: list[str]) -> Tensor:
        """The elements of one of `Shapes.runs`, in their order, without a copy."""
        return self.memory.tensor[self.shapes.piece(run)].view(self.shapes.known[run[0]][0])


class Buffers:
    """Memory for copies of tensors, used again and again: the first touch of fresh pages costs more than the copy.

    Only whoever knows that a copy is done with may give it back.
    """

    def __init__(self) -> None:
        self._free: list[Block] = []
        self._shapes = Shapes({}, ())

    def copy(self, tensors: dict[str, Tensor], parameters: Collection[str]) -> Block:
        """Contiguous copies on the CPU, under the same names."""
        if not self._shapes.fit(tensors, parameters):
            self._shapes = Shapes(tensors, parameters)
        block = self._again() or Block(self._shapes)
        if tensors:
            with torch.no_grad():
                torch._foreach_copy_(list(block.values()), [t.detach() for t in tensors.values()])
        return block

    def _again(self) -> Block | None:
        while self._free:
            block = self._free.pop()
            if block.shapes is self._shapes:
                return block
        return None  # what was there was of another time: the state has changed its shape since

    def give_back(self, copies: dict[str, Tensor]) -> None:
        if isinstance(copies, Block):
            self._free.append(copies)


def flat(tensors: dict[str, Tensor], parameters: Collection[str]) -> list[Tensor]:
    """The parameters in the order of their stream, as one tensor for each type in it; those of a block without a copy."""
    if isinstance(tensors, Block) and tensors.shapes.parameters == sorted(parameters):
        return [tensors.flat(run) for run in tensors.shapes.runs[0]]
    shapes = Shapes({name: tensors[name] for name in parameters}, parameters)
    return [torch.cat([tensors[name].reshape(-1) for name in run]) for run in shapes.runs[0]]


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy, in row-major order."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy().data).cast("B")
