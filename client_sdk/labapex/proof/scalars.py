"""The numbers among what a script tells a logger, within the limits of `records.Series`. What is left out is said once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from labapex.protocol.records import MAX_NAME, MAX_SERIES


class Scalars:
    """Hands each scalar on, by name."""

    def __init__(self, told: Callable[[str, float], None]) -> None:
        self._told = told
        self._names: set[str] = set()
        self._said: set[str] = set()

    def say(self, about: str, text: str) -> None:
        """Say something on stderr, once about each thing."""
        if about not in self._said:
            self._said.add(about)
            print(f"[labapex] {text}", file=sys.stderr)

    def one(self, name: Any, value: Any) -> None:
        name = "".join(c if c.isprintable() else " " for c in str(name))
        number = _number(value)
        if number is None:
            self.say("number", f"only numbers become series: '{name[:MAX_NAME]}', for one, is left out")
        elif not 0 < len(name) <= MAX_NAME:
            self.say("length", f"a series' name has 1 to {MAX_NAME} characters: '{name[:40]}..', for one, is left out")
        elif name not in self._names and len(self._names) >= MAX_SERIES:
            self.say("count", f"there are at most {MAX_SERIES} series: '{name}', for one, is left out")
        else:
            self._names.add(name)
            self._told(name, number)

    def each(self, values: Any, path: str = "", between: str = ".") -> None:
        """All of a dictionary, and of dictionaries in it, whose names are put together as loggers do."""
        if not isinstance(values, Mapping):
            return
        for key, value in values.items():
            name = f"{path}{between}{key}" if path else str(key)
            if isinstance(value, Mapping):
                self.each(value, name, between)
            else:
                self.one(name, value)


def _number(value: Any) -> float | None:
    """None for what is no number: text (of digits, too), pictures, tensors of several elements."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
