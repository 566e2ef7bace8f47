"""How far two states are apart where hosts of different classes cannot be expected to reach the same bits.

What is kept in floating point may differ by rounding and what grows out of it; all else (names, types, shapes, integers, texts,
generators, counters) must be the same. So a state in which somebody has put another learning rate, or a cleared momentum,
is as far away as one with other weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from labapex.proof.state import State

Numbers = dict[str, float]


def state_error(*, claimed: State, replayed: State, start: State | None = None) -> float | None:
    """||S' - S|| / ||S - S_start||_2, of the parameters and of all else in floating point: the larger of the two.

    1 is what doing nothing yields. Without `start` the norm of S itself divides. None: not finite, or what is not in
    floating point differs.
    """
    numbers: tuple[Numbers, Numbers, Numbers] = ({}, {}, {})
    one, other = (_exact(state.structure, "", of) for state, of in zip((claimed, replayed), numbers[:2], strict=True))
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):  # 1 is not true here
        return None
    if not _alike(claimed, replayed):
        return None
    if start is not None:
        _exact(start.structure, "", numbers[2])
    own = set(replayed.parameters)
    parameters = _relative(_tensor_squares(own, claimed, replayed, start))
    rest = _relative([*_tensor_squares(claimed.tensors.keys() - own, claimed, replayed, start), *_squares(*numbers)])
    return None if parameters is None or rest is None else max(parameters, rest)


def _exact(node: Any, path: str, numbers: Numbers) -> Any:
    """The structure without its floats, which go to `numbers` under their paths."""
    if isinstance(node, list):
        return [_exact(each, f"{path}/{n}", numbers) for n, each in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if node.keys() == {"f"} and isinstance(node["f"], str):
        try:
            numbers[path] = float.fromhex(node["f"])
        except (ValueError, OverflowError):
            return node
        return "float"
    return {key: _exact(each, f"{path}/{key}", numbers) for key, each in node.items()}


def _alike(one: State, other: State) -> bool:
    """The same tensors by name, type and shape, and by content where they are not of floating point."""
    if sorted(one.parameters) != sorted(other.parameters) or one.tensors.keys() != other.tensors.keys():
        return False
    pairs = [(tensor, other.tensors[name]) for name, tensor in one.tensors.items()]
    return all(a.dtype == b.dtype and a.shape == b.shape and (_rounds(a) or bool(torch.equal(a, b))) for a, b in pairs)


def _rounds(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tensor_squares(
    names: Iterable[str], claimed: State, replayed: State, start: State | None
) -> Iterator[tuple[float, float]]:
    """For each tensor of floating point: the squared norms of its error, and of its change since the start."""
    for name in names:
        a, b = claimed.tensors[name], replayed.tensors[name]
        if not _rounds(a):
            continue
        before = start.tensors.get(name) if start is not None else None
        if before is not None and (before.shape != a.shape or before.dtype != a.dtype):
            before = None  # it was made since
        wide = torch.complex128 if a.is_complex() else torch.float64
        a, b = a.to(wide), b.to(wide)
        error = torch.where((a == b) | (a.isnan() & b.isnan()), 0, b - a)
        change = a if before is None else a - before.to(wide)
        yield float(torch.linalg.vector_norm(error)) ** 2, float(torch.linalg.vector_norm(change)) ** 2


def _squares(claimed: Numbers, replayed: Numbers, start: Numbers) -> Iterator[tuple[float, float]]:
    for path, a in claimed.items():
        b = replayed[path]
        same = a == b or (math.isnan(a) and math.isnan(b))
        yield (0.0 if same else (b - a) ** 2), (a - start.get(path, 0.0)) ** 2


def _relative(squares: Iterable[tuple[float, float]]) -> float | None:
    """The error over the change. Where there is no error the change does not matter, be it finite or not."""
    error = change = 0.0
    for of_error, of_change in squares:
        error, change = error + of_error, change + of_change
    if error == 0:
        return 0.0
    return math.sqrt(error / change) if math.isfinite(error) and math.isfinite(change) and change else None
