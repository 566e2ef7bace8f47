"""Wall-clock readings that say so: a float read from a clock differs in each run and is no part of the training state.

`time.time()` and its siblings return a `Reading`; what is computed from one is one. The state walker leaves them out, so
that a script may keep its `t0 = time.time()` across iterations and still reproduce itself exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

CLOCKS = ("time", "perf_counter", "monotonic", "process_time")


class Reading(float):
    """A float that came from a clock."""

    __slots__ = ()


def _closed(name: str) -> Callable[..., Any]:
    plain = getattr(float, name)

    def method(self: Reading, *args: Any) -> Any:
        result = plain(self, *args)
        return Reading(result) if isinstance(result, float) else result

    return method


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "mod",
    "neg",
    "abs",
    "round",
):
    setattr(Reading, f"__{_name}__", _closed(f"__{_name}__"))


def mark_clocks() -> None:
    """Let the clocks of `time` return readings. For a process that runs a client's script, once."""
    for name in CLOCKS:
        read = getattr(time, name)
        setattr(time, name, lambda read=read: Reading(read()))
