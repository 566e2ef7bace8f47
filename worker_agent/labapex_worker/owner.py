"""What the owner of a host wants, held against the host as it is: whether work is taken, and whether what runs is given back."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Collection
from datetime import datetime

from labapex.protocol.devices import Device
from labapex_worker import limits, readings, transfers, wishes
from labapex_worker.config import Home
from labapex_worker.limits import Go, Patience, Pause, Readings
from labapex_worker.wishes import Wish

log = logging.getLogger(__name__)


class Owner:
    """`config` and `wish`: his settings as they were last read; `readings`: the last look at the host. Raises `UsageError`."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.config, self.wish = home.load(), wishes.read(home.wish)
        self.readings = Readings()
        self._patience = Patience()
        self._room_bytes = transfers.SPARE_BYTES  # without so much of the disk no work is asked for

    def read_again(self) -> None:
        """A command of his has changed them. Raises `UsageError`."""
        self.config, self.wish = self._home.load(), wishes.read(self._home.wish)
        log.info("the owner's settings were read again")

    def need(self, room: int) -> None:
        """Ask for no work before so many bytes of the disk are free, which were missing: it would be the same job again."""
        self._room_bytes = room

    async def look(self, found: Collection[Device], ours: Collection[int]) -> None:
        """At the host and its devices; `ours` are the processes that lead its jobs."""
        self.readings = await asyncio.to_thread(readings.read, found, ours)

    def decide(self, *others: str | None) -> Go | Pause:
        """Whether work is asked for. `others`: further reasons why it may not be; None: that one does not hold."""
        reasons = [self.wish.reason, *others]
        if shutil.disk_usage(self._home.path).free < self._room_bytes:
            reasons.append(f"its disk has less than {self._room_bytes >> 20} MiB free")
        pauses = [Pause(reason) for reason in reasons if reason is not None]
        allowed = limits.decide(self.config.limits, self.readings, datetime.now())
        return limits.together([*pauses, allowed] if isinstance(allowed, Pause) else pauses)

    def takes_back(self, decision: Go | Pause) -> str | None:
        """Why what runs is given back; None: it goes on."""
        if self._patience.ran_out(decision, time.monotonic()) and isinstance(decision, Pause):
            return f"the owner of the host took it back: {decision.reason}"
        return None

    def has_drained(self) -> bool:
        """No job is here any more: whether the worker is to end. The next `run` works again."""
        if self.wish is not Wish.DRAIN:
            return False
        log.info("it has run empty, as its owner wanted")
        wishes.write(self._home.wish, Wish.WORK)
        return True
