"""What the jobs' GPU does, seen from outside of their sandboxes; a GPU that is lost ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from labapex import nvml
from labapex.protocol.devices import Device, Observation
from labapex_worker import devices

log = logging.getLogger(__name__)

OBSERVE_SECONDS = 1.0


async def observe(
    host: Callable[[], Sequence[Device]],
    running: Callable[[], Mapping[UUID, int]],
    *,
    seen: Callable[[UUID, Observation], None],
    lost: Callable[[str], None],
) -> None:
    """For ever: `seen` gets each reading, `lost` why there are no more. `host` tells the devices, `running` the leases, each with
    the process that leads it."""
    while True:
        jobs = running()
        gpu = next((device for device in host() if device.kind == "cuda" and device.usable), None)
        if jobs and gpu is not None:
            try:
                readings = await asyncio.to_thread(devices.observe, gpu, jobs)
            except nvml.GpuLost as problem:
                log.error("%s: %s", gpu, problem)
                lost(f"{gpu}: {problem}")
            except nvml.DriverProblem as problem:
                log.debug("%s: no figures: %s", gpu, problem)
            else:
                for lease, reading in readings.items():
                    seen(lease, reading)
        await asyncio.sleep(OBSERVE_SECONDS)
