"""What GPUs look like from outside, as traces for stub.c: one reading a second."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

GIB = 1 << 30
H200 = (
    "name NVIDIA H200\nuuid GPU-1f6e2c34-9a7b-4d58-8c01-0b2f4f6d7a90\ndriver 580.95.05\ncuda 13000\ncapability 9 0\n"
    f"total {141 * GIB}\nlimit 700000\nmig 0\necc 1\nutil 0\nused {GIB // 2}\npower 78000\n"
    "temperature 31\nclock 345\nreasons 0x1\n"
)
UUID = "GPU-1f6e2c34-9a7b-4d58-8c01-0b2f4f6d7a90"


def trace(readings: Iterable[str], before: str = H200) -> str:
    """A device, and what changes from each reading to the next."""
    return before + "".join(f"{reading}next\n" for reading in readings)


def resnet(*, epochs: int = 6, epoch_seconds: int = 40, seed: int = 2) -> str:
    """ResNet-18 on a V100, as in figure 2 of the Lab Apex paper: utilisation of 85 to 100 % that falls at the end of each
    epoch, when the next one's data are loaded; memory that rises for some seconds and then stays."""
    draw = random.Random(seed)
    v100 = H200.replace("NVIDIA H200", "Tesla V100-SXM2-16GB").replace("capability 9 0", "capability 7 0")
    v100 = v100.replace(f"total {141 * GIB}", f"total {16 * GIB}").replace("limit 700000", "limit 300000")

    def reading(second: int) -> str:
        into = second % epoch_seconds
        loading = second < 3 or (into < 2 and second >= epoch_seconds)
        util = draw.randint(4, 30) if loading else min(100, round(draw.gauss(95, 3)))
        memory = round(GIB * (0.4 + 2.7 * (1 - math.exp(-max(0, second - 2) / 2.5))))
        heat = 31 + 33 * (1 - math.exp(-second / 45))
        watts = round(1000 * (58 + 2.1 * util + draw.gauss(0, 4)))
        return (
            f"util {util}\nused {memory}\npower {watts}\ntemperature {round(heat)}\n"
            f"clock {1530 if util > 40 else 1290}\nreasons {'0x1' if util < 10 else '0x0'}\n"
        )

    return trace((reading(second) for second in range(epochs * epoch_seconds)), before=v100)


def saturated(seconds: int) -> str:
    """A device at its limit all the time: no sample is above the mean."""
    return trace(
        "util 100\nused 64424509440\npower 690000\ntemperature 68\nclock 1980\nreasons 0x0\n" for _ in range(seconds)
    )


def flicker(seconds: int) -> str:
    """A device that idles, with a percent here and there."""
    return trace(f"util {second % 2}\nused {GIB}\n" for second in range(seconds))


def throttled(seconds: int) -> str:
    """Hot and at its power limit."""
    row = "util 97\npower 700000\ntemperature 88\nclock 1230\nreasons 0x24\n"
    return trace(row for _ in range(seconds))


def lost(after: int) -> str:
    """A device that falls off the bus after some readings."""
    return trace([*("util 90\n" for _ in range(after)), "fail all 15\n"])
