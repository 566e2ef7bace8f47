"""When a host takes new work: parts of every day."""

from __future__ import annotations

from datetime import time
from typing import Annotated

from pydantic import Field

from labapex.protocol.canonical import Message

MAX_WINDOWS = 16
DAY = 24 * 60
Minute = Annotated[int, Field(ge=0, lt=DAY)]


class Hours(Message):
    """A part of every day in minutes since midnight, without its end; over midnight where it ends before it begins."""

    begin: Minute
    end: Minute

    def __str__(self) -> str:
        return "-".join(f"{minute // 60:02d}:{minute % 60:02d}" for minute in (self.begin, self.end))

    def hold(self, now: time) -> bool:
        minute = now.hour * 60 + now.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def later(self, minutes: int) -> Hours:
        """The same on a clock that is ahead by so many minutes; behind where they are less than 0."""
        return Hours(begin=(self.begin + minutes) % DAY, end=(self.end + minutes) % DAY)
