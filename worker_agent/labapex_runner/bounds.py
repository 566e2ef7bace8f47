"""What a job may take by its contract, looked at from within its sandbox while it trains."""

from __future__ import annotations

import time
from pathlib import Path

from labapex import watch
from labapex.protocol.limits import Limits

LOOK_SECONDS = 0.25  # between two looks at what the job takes: before a host's own watch, which looks each second


class Bounds:
    """What the trainer `pid`, what it started and the files of its folder may take; None: no contract says. `events`: where the
    kernel counts what memory ran out of, if the host keeps the job in a control group."""

    def __init__(self, limits: Limits | None, pid: int, folder: Path, events: Path | None) -> None:
        self._limits, self._pid, self._folder, self._events = limits, pid, folder, events
        self._look_at = 0.0

    def exceeded(self, now: float) -> str | None:
        """What was taken too much of, in words for the client; None where it is nothing, or it is not time to look yet."""
        if self._limits is None or now < self._look_at:
            return None
        wanted = self._limits
        excess = watch.exceeded(self._pid, self._folder, wanted.memory, wanted.disk, wanted.processes)
        self._look_at = now + max(LOOK_SECONDS, watch.SHARE * (time.monotonic() - now))
        return self.killed() if excess is None else _words(excess)

    def killed(self) -> str | None:
        """Likewise where the kernel ended something of the job, as its control group had no memory left."""
        if self._limits is None or self._events is None or not watch.ran_out(self._events):
            return None
        size = watch.size(self._limits.memory)
        return _words(
            watch.Excess("memory", f"the job used more memory than the {size} that are its limit, and was killed")
        )


def _words(excess: watch.Excess) -> str:
    return f"{excess.words}: ask for more in labapex.yaml (limits.{excess.limit})\n"
