"""How much a script may tell of its own series: the log is there for the losses, and these are an extra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from labapex.protocol.records import MAX_SERIES

FREE_BYTES = 32 << 10
BYTES_PER_SECOND = 400
POINT_BYTES = 24
"""What each series may take at once and as time goes by; a point takes this and its name. So all of them together stay below
what the platform lets a log grow by."""


@dataclass
class _Budget:
    left: float
    at: float  # monotonic seconds


class Allowance:
    """Lets points through or leaves them out, each series by itself: one that is told rarely is not thinned with the others."""

    def __init__(self) -> None:
        self._budgets: dict[str, _Budget] = {}
        self._left_out = 0

    def admit(self, values: Mapping[str, float], now: float) -> dict[str, float]:
        """Those of an iteration's points that go into the log."""
        admitted = {name: value for name, value in values.items() if self._takes(name, now)}
        self._left_out += len(values) - len(admitted)
        return admitted

    def notice(self) -> str:
        """What is to be said at the end; empty where nothing was left out."""
        if not self._left_out:
            return ""
        return (
            f"[labapex] {self._left_out} points of the script's series were left out: a series may have some hundred at once "
            f"and then about {BYTES_PER_SECOND // (2 * POINT_BYTES)} a second, and a job {MAX_SERIES} series\n"
        )

    def _takes(self, name: str, now: float) -> bool:
        budget = self._budgets.get(name)
        if budget is None:
            if len(self._budgets) == MAX_SERIES:
                return False
            budget = self._budgets[name] = _Budget(FREE_BYTES, now)
        budget.left = min(FREE_BYTES, budget.left + BYTES_PER_SECOND * (now - budget.at))
        budget.at = now
        cost = POINT_BYTES + len(name.encode())
        if budget.left < cost:
            return False
        budget.left -= cost
        return True
