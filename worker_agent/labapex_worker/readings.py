"""What the owner's limits are held against, read of the host."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from labapex.protocol.devices import Device
from labapex_worker import devices
from labapex_worker.limits import Readings


def read(found: Iterable[Device], ours: Collection[int]) -> Readings:
    """One look at the host and its devices; takes some milliseconds.

    `ours` are the processes that lead the jobs on it: what descends from them is not somebody else's, and while there are
    any the load of the host says nothing about others. Of several GPUs it is the worst that counts, and a figure that one
    of them does not tell is told by none."""
    looks = [devices.readings(device, ours) for device in found if device.kind == "cuda"]
    return Readings(
        power_watts=_worst(None if look is None else look.power for look in looks),
        temperature=_worst(None if look is None else look.temperature for look in looks),
        others=_sum(None if look is None or look.foreign is None else look.foreign.processes for look in looks),
        load=None if ours else os.getloadavg()[0] / (os.cpu_count() or 1),
    )


def _worst(figures: Iterable[float | None]) -> float | None:
    told = list(figures)
    return None if None in told else max((figure for figure in told if figure is not None), default=None)


def _sum(figures: Iterable[int | None]) -> int | None:
    told = list(figures)
    return None if None in told or not told else sum(figure for figure in told if figure is not None)
