"""What goes wrong, and when: drawn from a seed beforehand, so that the same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    # to the next message of the log in one direction
    FLIP = "flip"
    DOUBLE = "double"
    SWAP = "swap"
    DELAY = "delay"
    # to a connection or a program
    CUT = "cut"
    KILL_AGENT = "kill-agent"
    KILL_EXECUTABLE = "kill-executable"
    KILL_WEB = "kill-web"
    KILL_PIPELINE = "kill-pipeline"
    DROP_DATABASE = "drop-database"
    CUT_BROKER = "cut-broker"


ON_MESSAGES = (Kind.FLIP, Kind.DOUBLE, Kind.SWAP, Kind.DELAY)

EVERY: dict[Kind, float] = {
    Kind.FLIP: 2.0,
    Kind.DOUBLE: 1.5,
    Kind.SWAP: 2.0,
    Kind.DELAY: 2.0,
    Kind.CUT: 5.0,
    Kind.KILL_AGENT: 25.0,
    Kind.KILL_EXECUTABLE: 90.0,
    Kind.KILL_WEB: 45.0,
    Kind.KILL_PIPELINE: 60.0,
    Kind.DROP_DATABASE: 12.0,
    Kind.CUT_BROKER: 30.0,
}
"""Mean seconds between two faults of a kind."""


@dataclass(frozen=True, order=True)
class Fault:
    at: float  # seconds from the beginning
    kind: Kind
    host: int  # whose
    up: bool  # towards the platform
    draw: int  # which bit, how long: what the kind makes of it


def schedule(seed: int, seconds: float, hosts: int) -> Sequence[Fault]:
    """All faults of a play, in order."""
    faults: list[Fault] = []
    for kind, every in EVERY.items():
        dice = random.Random(f"{seed} {kind.value}")
        at = dice.expovariate(1 / every)
        while at < seconds:
            up = kind is not Kind.FLIP or dice.random() < 0.8
            faults.append(Fault(at, kind, dice.randrange(hosts), up and dice.random() < 0.7, dice.getrandbits(32)))
            at += dice.expovariate(1 / every)
    return sorted(faults, key=lambda fault: fault.at)
