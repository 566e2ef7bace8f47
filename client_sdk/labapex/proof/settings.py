"""The hyper-parameters by which a run's optimizers go on: what a leaf says of them, so that none needs a state to be seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from labapex.protocol.canonical import digest


def settings_digest(optimizers: Iterable[Optimizer]) -> str:
    """SHA-256 over the canonical JSON of, for each optimizer in the order of creation, its groups' settings by name."""
    return digest(
        [
            [{name: _plain(value) for name, value in group.items() if name != "params"} for group in each.param_groups]
            for each in optimizers
        ]
    )


def _plain(value: Any) -> Any:
    """A setting as JSON has it: numbers as Python spells their exact value, other objects as their type's name."""
    if isinstance(value, Tensor):
        return _plain(value.tolist()) if value.numel() <= 64 else "Tensor"
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return type(value).__name__
