"""Where the recorder puts what it sees. In a trainer the other end is the supervisor; in a test it is a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from labapex.protocol.records import Leaf


class Sink(Protocol):
    def iteration(self, step: int, loss: float, at: float) -> None:
        """Iteration `step` (from 0) is complete; `loss` may be NaN or infinite; `at` is Unix time in seconds."""

    def leaf(self, leaf: Leaf) -> None:
        """The state after `leaf.step` iterations is committed and lies in `states/<leaf.index>.safetensors`."""

    def scalars(self, values: Mapping[str, float]) -> None:
        """What the script told a logger since the iteration before, by name: of the one that comes next."""


class Notes:
    """A sink that keeps what it hears. `times` are Unix time in seconds."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[float] = []
        self.leaves: list[Leaf] = []
        self.told: list[tuple[int, dict[str, float]]] = []  # after how many iterations, and what

    def iteration(self, step: int, loss: float, at: float) -> None:
        self.losses.append(loss)
        self.times.append(at)

    def leaf(self, leaf: Leaf) -> None:
        self.leaves.append(leaf)

    def scalars(self, values: Mapping[str, float]) -> None:
        self.told.append((len(self.losses), dict(values)))
