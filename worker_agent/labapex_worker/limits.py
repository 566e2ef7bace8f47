"""What the owner of a host allows: when it works, for how much, and how hot it may get.

`decide` is a pure function of the limits, of what was read of the host and of the time on its clock. The session asks
for work only on `Go`. A `Pause` tells why there is none, and whether what runs is given back, and after how long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import Field

from labapex.errors import UsageError
from labapex.protocol.canonical import Message
from labapex.protocol.frames import Price
from labapex.protocol.hours import MAX_WINDOWS, Hours

BUSY_LOAD = 0.5
"""Load average of one minute for each core, above which somebody else works on the host (`idle_only`)."""

_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


class Limits(Message):
    """The owner's limits. None: no such limit."""

    price_per_hour: Price | None = None  # micro-credits for a GPU-hour; None: what the platform has on record
    hours: tuple[Hours, ...] = Field(default=(), max_length=MAX_WINDOWS)  # by the host's own clock; none: always
    hard_hours: bool = False  # outside of the hours what runs is given back
    idle_only: bool = False  # no new work while somebody else uses the host
    max_power_watts: float | None = Field(default=None, gt=0, le=10_000)  # drawn by one GPU
    max_temperature: float | None = Field(default=None, gt=0, le=200)  # of one GPU, degrees Celsius
    grace_seconds: float = Field(default=60, ge=0, le=86_400)  # over power or temperature, then what runs is given back
    metrics_port: int | None = Field(default=None, ge=1024, le=65_535)  # of the page on 127.0.0.1


@dataclass(frozen=True)
class Readings:
    """What was read of the host. None: it cannot be read there, or says nothing while a job of ours runs."""

    power_watts: float | None = None  # of the GPU that draws most
    temperature: float | None = None  # of the hottest, degrees Celsius
    others: int | None = None  # processes on the GPUs that are none of ours
    load: float | None = None  # of one minute, for each core


@dataclass(frozen=True)
class Go:
    """Work may be asked for."""


@dataclass(frozen=True)
class Pause:
    """No new work. What runs goes on, or is given back when the pause has lasted `give_back_after` seconds."""

    reason: str
    give_back_after: float | None = None


def decide(limits: Limits, readings: Readings, now: datetime) -> Go | Pause:
    """Whether the owner allows work. `now` is in the host's own time zone."""
    return together([*_over(limits, readings), *_out_of_hours(limits, now), *_in_use(limits, readings)])


def in_utc(hours: Sequence[Hours], now: datetime) -> tuple[Hours, ...]:
    """What the hours of the host's own clock are by UTC. `now` is in the host's own time zone."""
    offset = now.utcoffset()
    assert offset is not None  # it has a zone
    return tuple(each.later(-int(offset.total_seconds() // 60)) for each in hours)


def together(pauses: Sequence[Pause]) -> Go | Pause:
    """All reasons in one, as impatient as the least patient of them."""
    if not pauses:
        return Go()
    patience = [pause.give_back_after for pause in pauses if pause.give_back_after is not None]
    return Pause("; ".join(pause.reason for pause in pauses), min(patience, default=None))


def _over(limits: Limits, readings: Readings) -> list[Pause]:
    pauses = []
    for name, limit, read, unit in (
        ("power", limits.max_power_watts, readings.power_watts, "W"),
        ("temperature", limits.max_temperature, readings.temperature, "°C"),
    ):
        if limit is None:
            continue
        if read is None:
            pauses.append(Pause(f"the GPU does not tell its {name}, which is limited to {limit:g} {unit}"))
        elif read > limit:
            reason = f"the GPU's {name} is {read:g} {unit}, over the limit of {limit:g} {unit}"
            pauses.append(Pause(reason, limits.grace_seconds))
    return pauses


def _out_of_hours(limits: Limits, now: datetime) -> list[Pause]:
    if not limits.hours or any(hours.hold(now.time()) for hours in limits.hours):
        return []
    reason = f"it works {', '.join(map(str, limits.hours))} by its own clock"
    return [Pause(reason, 0 if limits.hard_hours else None)]


def _in_use(limits: Limits, readings: Readings) -> list[Pause]:
    if not limits.idle_only:
        return []
    if readings.others:
        return [Pause(f"the GPU is in use by {readings.others} process{'es'[: 2 * (readings.others > 1)]} of others")]
    if readings.load is not None and readings.load > BUSY_LOAD:
        return [Pause(f"the host is in use: its load is {readings.load:.2f} for each core")]
    return []


class Patience:
    """How long a pause that gives work back has lasted without a break."""

    def __init__(self) -> None:
        self._since: float | None = None

    def ran_out(self, decision: Go | Pause, now: float) -> bool:
        """Whether what runs is to be given back. `now` in seconds of a monotonic clock."""
        if isinstance(decision, Go) or decision.give_back_after is None:
            self._since = None
            return False
        self._since = now if self._since is None else self._since
        return now - self._since >= decision.give_back_after


def read_hours(text: str) -> tuple[Hours, ...]:
    """`22:00-07:00`, several with commas between; `always` or nothing for none. Raises `UsageError`."""
    if text.strip().lower() in ("", "always"):
        return ()
    windows = []
    for part in text.split(","):
        match = _HOURS.fullmatch(part.strip())
        hours, minutes = ((0, 0), (0, 0)) if match is None else (match.group(1, 3), match.group(2, 4))
        if match is None or any(int(hour) > 23 for hour in hours) or any(int(minute) > 59 for minute in minutes):
            raise UsageError(f"'{part.strip()}' are no hours; write 22:00-07:00, several with commas between")
        begin, end = (int(hour) * 60 + int(minute) for hour, minute in zip(hours, minutes, strict=True))
        if begin == end:
            raise UsageError(f"'{part.strip()}' begins when it ends; for the whole day write always")
        windows.append(Hours(begin=begin, end=end))
    if len(windows) > MAX_WINDOWS:
        raise UsageError(f"{len(windows)} windows of hours; at most {MAX_WINDOWS} can be kept")
    return tuple(windows)
