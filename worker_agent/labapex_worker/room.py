"""What one job may take of this host: as much as its owner allows, and no more than there is just now."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from labapex import executable, sandbox, watch
from labapex.errors import LabApexError
from labapex.protocol.limits import MAX_PROCESSES, MAX_SIZE, Limits
from labapex_worker.config import Config

MEMORY_STEP, DISK_STEP = 512 << 20, 1 << 30  # it is told in such steps: what is free changes all the time


class Lacking(LabApexError):
    """A job asks for more than there is."""


def allowed_memory(config: Config) -> int:
    """Bytes that the owner allows to one job."""
    return config.total_memory_bytes or sandbox.most_memory()


def of_host(config: Config, home: Path) -> Limits:
    """What the platform is told."""
    memory = min(allowed_memory(config), psutil.virtual_memory().available)
    disk = min(config.disk_bytes, max(0, shutil.disk_usage(home).free - watch.FREE_BYTES))
    return Limits(
        memory=min(_down(memory, MEMORY_STEP), MAX_SIZE),
        disk=min(_down(disk, DISK_STEP), MAX_SIZE),
        processes=min(config.processes or MAX_PROCESSES, MAX_PROCESSES),
    )


def check(job: Path, room: Limits) -> None:
    """Raise `Lacking` where the job in the executable `job`, which was verified, asks for more than `room`."""
    limits = executable.inspect(job).manifest.contract.limits
    if limits is None or not (beyond := limits.beyond(room)):
        return
    words = {
        "memory": f"{watch.size(limits.memory)} of memory, and {watch.size(room.memory)} are to be had",
        "disk": f"{watch.size(limits.disk)} of disk, and {watch.size(room.disk)} are to be had",
        "processes": f"{limits.processes} processes, and {room.processes} are allowed",
    }
    raise Lacking("the job asks for " + "; ".join(words[name] for name in beyond))


def _down(size: int, step: int) -> int:
    return size // step * step
