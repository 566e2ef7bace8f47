"""Product code with one rule broken, so that a test can show that it would notice."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any


def mutant_module(module: types.ModuleType, before: str, after: str) -> types.ModuleType:
    """A copy of the module whose source says `after` where it said `before`, which must occur just once."""
    broken = types.ModuleType(module.__name__)
    broken.__dict__["__name__"] = module.__name__  # dataclasses look their module up
    exec(_broken(inspect.getsource(module), before, after), broken.__dict__)
    return broken


def mutant_function(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
    """The function with such a change, among the unchanged names of its module."""
    names = dict(function.__globals__)
    exec(_broken(inspect.getsource(function), before, after), names)
    broken: Callable[..., Any] = names[function.__name__]
    return broken


def _broken(source: str, before: str, after: str) -> types.CodeType:
    assert source.count(before) == 1, before
    future = "" if source.startswith('"""') else "from __future__ import annotations\n"
    return compile(future + source.replace(before, after), "mutant", "exec")
