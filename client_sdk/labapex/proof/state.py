"""The whole state of a run at one step, detached from the program: its digest, its file, its distances.

A state is a `structure` (canonical JSON: every scalar, container and object the script keeps, with references to tensors by
name) and the tensors. Its digest is the RFC 6962 Merkle root over: the header {structure, names, types, shapes}, then
each tensor's bytes in chunks of 16 KiB. So any chunk can be opened by itself. Files are safetensors; the digest is over
tensors and structure, not over the file, whose metadata is free to vary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import torch
from torch import Tensor

from labapex.errors import MalformedInput, TrainingFailed
from labapex.proof import merkle
from labapex.protocol.canonical import canonical
from labapex.protocol.replay import Distances

CHUNK = 16 * 1024
_BLOCK = 32_000  # elements summed at a time: they stay in cache, and torch splits no work this small between threads
_LEAF = hashlib.sha256(b"\x00")  # a leaf's hash so far; a copy costs less than a hash from the beginning
_SAFE_INTEGER = 2**53 - 1
_FILE_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass
class State:
    """`tensors` are contiguous, on the CPU, detached; `parameters` names those that an optimizer trains."""

    structure: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """The Merkle root over header and chunks, in hexadecimal. Raises `MalformedInput` for what JSON cannot spell."""
        try:
            return merkle.root_of_hashes(self._hashes()).hex()
        except (ValueError, RecursionError) as error:  # NaN, integers over 2^53, lone surrogates, endless nesting
            raise MalformedInput(f"the state's structure has no canonical form: {type(error).__name__}") from None

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def _header(self) -> bytes:
        shapes = [[n, str(self.tensors[n].dtype), list(self.tensors[n].shape)] for n in sorted(self.tensors)]
        return _spelled({"structure": self.structure, "tensors": shapes, "parameters": sorted(self.parameters)})

    def _hashes(self) -> Iterator[bytes]:
        """The tree's leaf hashes: SHA-256(0x00 | entry) of the header and of each chunk, which is not copied for it."""
        yield merkle.leaf_hash(self._header())
        for name in sorted(self.tensors):
            raw = raw_bytes(self.tensors[name])
            for start in range(0, len(raw), CHUNK):
                leaf = _LEAF.copy()
                leaf.update(raw[start : start + CHUNK])
                yield leaf.digest()

    def save(self, path: Path) -> int:
        """Write the state as safetensors, atomically, straight from the tensors' memory; returns the file's size in bytes.

        Raises `TrainingFailed` for a type of tensor that the format does not have.
        """
        entries: dict[str, Any] = {
            "__metadata__": {"structure": json.dumps(self.structure), "parameters": json.dumps(self.parameters)}
        }
        # The format wants no gaps; the widest types first, so that all are aligned.
        order = sorted(self.tensors, key=lambda name: (-self.tensors[name].element_size(), name))
        end = 0
        for name in order:
            tensor = self.tensors[name]
            if tensor.dtype not in _FILE_TYPES:
                raise TrainingFailed(
                    f"{name} is of type {tensor.dtype}, which no state file can hold: keep another type"
                )
            begin, end = end, end + tensor.numel() * tensor.element_size()
            kind, shape = _FILE_TYPES[tensor.dtype], list(tensor.shape)
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        temporary = path.with_suffix(".partial")
        with temporary.open("wb", buffering=1 << 18) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name in order:
                file.write(raw_bytes(self.tensors[name]))
        temporary.replace(path)
        return 8 + len(header) + end

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a state that came from a worker. Raises `MalformedInput`; what it holds is checked by its digest."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            structure, parameters = json.loads(metadata["structure"]), json.loads(metadata["parameters"])
        except (safetensors.SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
            raise MalformedInput(f"{path.name} is not a state file: {type(error).__name__}: {error}") from None
        named = isinstance(parameters, list) and all(isinstance(n, str) and n in tensors for n in parameters)
        if not named or not isinstance(structure, dict):
            raise MalformedInput(f"{path.name} is not a state file: its metadata is malformed")
        return cls(structure, tensors, parameters)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without a copy, in row-major order."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy().data).cast("B")


class Buffers:
    """Memory for copies of tensors, used again and again: the first touch of fresh pages costs more than the copy.

    Only whoever knows that a copy is done with may give it back.
    """

    def __init__(self) -> None:
        self._free: list[dict[str, Tensor]] = []

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies on the CPU, under the same names."""
        room = None
        while self._free and room is None:
            room = self._free.pop()
            if list(room) != list(tensors) or any(
                a.shape != b.shape or a.dtype != b.dtype for a, b in zip(room.values(), tensors.values(), strict=True)
            ):
                room = None  # of another time: the state has changed its shape since
        if room is None:
            room = {n: torch.empty(t.shape, dtype=t.dtype, device="cpu") for n, t in tensors.items()}
        if tensors:
            with torch.no_grad():
                torch._foreach_copy_(list(room.values()), [t.detach() for t in tensors.values()])
        return room

    def give_back(self, copies: dict[str, Tensor]) -> None:
        self._free.append(copies)


def _spelled(document: dict[str, Any]) -> bytes:
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


def _unlike(text: str) -> NoReturn:
    raise ValueError(text)


def _small(digits: str) -> int:
    value = int(digits)
    if abs(value) > _SAFE_INTEGER:
        raise ValueError(digits)
    return value


def losses_digest(column: bytes) -> str:
    """SHA-256 over a float64 column of losses, in hexadecimal: what a leaf says of the losses since the one before."""
    return hashlib.sha256(column).hexdigest()


def parameter_change(before: State, after: State) -> float | None:
    """||W_after - W_before||_2 over the trained parameters; None where it is not finite or their shapes differ."""
    if not _alike(before, after):
        return None
    squares = list(_squares([(before.tensors[n], after.tensors[n]) for n in after.parameters]))
    return _finite(math.fsum(squares) ** 0.5) if all(map(math.isfinite, squares)) else None


def _squares(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[float]:
    """Sums of squared differences, block by block in float64: the same with any number of threads."""
    room = torch.empty(_BLOCK, dtype=torch.float64)
    for before, after in pairs:
        old, new = before.reshape(-1), after.reshape(-1)
        for start in range(0, new.numel(), _BLOCK):
            part = new[start : start + _BLOCK]
            change = room[: part.numel()].copy_(part).sub_(old[start : start + _BLOCK])
            yield float(torch.linalg.vector_norm(change)) ** 2


def distances(*, claimed: State, replayed: State, start: State) -> Distances:
    """l1, l2, linf and cosine distance between the parameters of two states, and the error relative to the update.

    `relative` = ||W' - W|| / ||W - W_start||; 1.0 is what doing nothing yields. None: not finite, or not comparable.
    """
    if not _alike(claimed, replayed) or not _alike(start, replayed):
        return Distances(l1=None, l2=None, linf=None, cos=None, relative=None)
    names = replayed.parameters
    w, w2, w0 = _flat(claimed, names), _flat(replayed, names), _flat(start, names)
    difference = w2 - w
    error, update = _norm(difference), _norm(w - w0)
    relative = None
    if error is not None and update is not None:
        relative = 0.0 if error == 0 else _finite(error / update if update else float("inf"))
    lengths = float(w.norm() * w2.norm())
    return Distances(
        l1=_finite(float(difference.abs().sum())),
        l2=error,
        linf=_finite(float(difference.abs().max())) if difference.numel() else 0.0,
        cos=(0.0 if error == 0 else _finite(1.0 - float(w @ w2) / lengths)) if lengths else None,
        relative=relative,
    )


def reference_distance(one: State, other: State) -> float | None:
    """d_ref: l2 between the initial parameters of two seeds, which dominates that of two trained models."""
    return parameter_change(one, other)


def first_difference(one: State, other: State) -> str | None:
    """The name of the first entry in which two states differ, for people; None where they are equal."""
    for name in sorted(set(one.tensors) | set(other.tensors)):
        a, b = one.tensors.get(name), other.tensors.get(name)
        if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape or raw_bytes(a) != raw_bytes(b):
            return name
    return _first_difference(one.structure, other.structure, "")


def _first_difference(a: Any, b: Any, path: str) -> str | None:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        pairs = [(k, a[k], b[k]) for k in a]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(str(n), x, y) for n, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else path or "the structure"
    for key, x, y in pairs:
        found = _first_difference(x, y, f"{path}/{key}")
        if found is not None:
            return found
    return None


def _alike(one: State, other: State) -> bool:
    return one.parameters == other.parameters and all(
        one.tensors[n].shape == other.tensors[n].shape for n in one.parameters
    )


def _flat(state: State, names: list[str]) -> Tensor:
    if not names:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([state.tensors[n].reshape(-1).to(torch.float64) for n in names])


def _norm(vector: Tensor) -> float | None:
    return _finite(float(vector.norm()))


def _finite(value: float) -> float | None:
    return value if -float("inf") < value < float("inf") else None
