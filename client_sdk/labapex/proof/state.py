"""The whole state of a run at one step, detached from the program: its digest, its file, its distances.

A state is a `structure` (canonical JSON: every scalar, container and object the script keeps, with references to tensors by
name) and the tensors. Its digest is the RFC 6962 Merkle root over: the header {structure, names, types, shapes}, then
the bytes of all parameters as one stream in chunks of 16 KiB, then those of all other tensors as another. So any chunk can
be opened by itself (`chunks`), and number n of a run's parameters has one place in the trees of all its states. Files
are safetensors; the digest is over tensors and structure, not over the file, whose metadata is free to vary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from labapex.errors import MalformedInput
from labapex.proof import merkle
from labapex.proof.block import flat, raw_bytes
from labapex.proof.image import Image
from labapex.protocol.contract import Stretch
from labapex.protocol.replay import Distances

_BLOCK = 32_000  # elements summed at a time: torch splits no work this small between threads
_TOGETHER = 8 * _BLOCK  # elements subtracted at a time: they stay in cache


@dataclass
class State:
    """`tensors` are contiguous, on the CPU, detached; `parameters` names those that an optimizer trains."""

    structure: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)

    def image(self) -> Image:
        """The state as bytes. Raises `MalformedInput` for what JSON cannot spell."""
        return Image(self.structure, self.tensors, self.parameters)

    def digest(self) -> str:
        """The Merkle root over header and chunks, in hexadecimal. Raises `MalformedInput` as `image` does."""
        return merkle.root_of_hashes(self.tree()).hex()

    def tree(self) -> list[bytes]:
        """The tree's leaf hashes: of the header, of the parameters' chunks, of the others'. Raises as `image` does."""
        return self.image().tree()

    def layout(self) -> tuple[Stretch, ...]:
        """The types in the parameters' stream, each with its bytes."""
        sizes = [(str(run.dtype).removeprefix("torch."), run.nbytes) for run in flat(self.tensors, self.parameters)]
        return tuple(Stretch(type=kind, size=size) for kind, size in sizes if size)

    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def save(self, path: Path) -> int:
        """Write the state's file; returns its size in bytes. Raises as `image` and `Image.save` do."""
        return self.image().save(path)

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


def losses_digest(column: bytes) -> str:
    """SHA-256 over a float64 column of losses, in hexadecimal: what a leaf says of the losses since the one before."""
    return hashlib.sha256(column).hexdigest()


def parameter_change(before: State, after: State) -> float | None:
    """||W_after - W_before||_2 over the trained parameters; None where it is not finite or their shapes differ."""
    if not _alike(before, after):
        return None
    runs = zip(flat(before.tensors, before.parameters), flat(after.tensors, after.parameters), strict=True)
    squares = [square for old, new in runs for square in _squares(old, new)]
    return _finite(math.fsum(squares) ** 0.5) if all(map(math.isfinite, squares)) else None


def _squares(old: Tensor, new: Tensor) -> Iterator[float]:
    """Sums of squared differences in float64, block by block: the same with any number of threads."""
    if new.is_complex():
        old, new = torch.view_as_real(old).reshape(-1), torch.view_as_real(new).reshape(-1)
    room = torch.empty(min(_TOGETHER, new.numel()), dtype=torch.float64)
    for before, after in zip(old.split(_TOGETHER), new.split(_TOGETHER), strict=True):
        change = room[: after.numel()].copy_(after).sub_(before)
        yield from torch.stack(torch._foreach_norm(change.split(_BLOCK))).square().tolist()


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
        (a.shape, a.dtype) == (b.shape, b.dtype)
        for a, b in ((one.tensors[n], other.tensors[n]) for n in one.parameters)
    )


def _flat(state: State, names: list[str]) -> Tensor:
    if not names:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([state.tensors[n].reshape(-1).to(torch.float64) for n in names])


def _norm(vector: Tensor) -> float | None:
    return _finite(float(vector.norm()))


def _finite(value: float) -> float | None:
    return value if -float("inf") < value < float("inf") else None
