"""Readings of the device that trains: NVML's for a GPU, the process tree's own for a CPU, never one for the other.

A GPU's figures are the whole device's. On a CPU the "device" is what the contract rents, a number of threads, so
utilisation is the share of these threads that the job's processes kept busy since the last reading, and memory is the
memory that they hold.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

import psutil

from labapex import nvml
from labapex.protocol.contract import Environment
from labapex.protocol.records import Sample


class Meter(Protocol):
    def read(self) -> Sample | None:
        """One reading, or None where the device gives none just now. May say why in `complaint`."""

    @property
    def complaint(self) -> str | None: ...


def meter(environment: Environment, threads: int, root: int) -> Meter:
    """The meter for the device of this environment; `root` is the process whose tree is the job."""
    if environment.device.startswith("cuda"):
        return GpuMeter()
    return CpuMeter(environment.device, threads, root)


class GpuMeter:
    """The first GPU that CUDA shows to the trainer. Every call to NVML may fail: then there is no sample."""

    def __init__(self) -> None:
        self.complaint: str | None = None
        self._driver = nvml.Driver()
        self._which = _first(os.environ.get("CUDA_VISIBLE_DEVICES"))

    def read(self) -> Sample | None:
        try:
            reading = self._driver.read(self._which)
        except nvml.DriverProblem as problem:
            self.complaint = f"no GPU figures: {problem}"
            return None
        self.complaint = None
        return Sample(
            at=time.time(),
            source="nvml",
            device=reading.name,
            utilisation=reading.utilisation,
            memory=reading.memory,
            memory_total=reading.memory_total,
            uuid=self._which if isinstance(self._which, str) else None,
            power=reading.power,
            temperature=reading.temperature,
            clock=reading.clock,
            throttled=reading.throttled,
        )


def _first(visible: str | None) -> str | int:
    """CUDA's device 0 as NVML knows it: NVML does not look at CUDA_VISIBLE_DEVICES. A worker names devices by UUID."""
    first = (visible or "0").split(",")[0].strip()
    return int(first) if first.isdigit() else first


class CpuMeter:
    """CPU time and resident memory of a process and all that it started."""

    def __init__(self, device: str, threads: int, root: int) -> None:
        self.complaint: str | None = None
        self._device = device[:200]
        self._threads = threads
        self._root = root
        self._used: dict[tuple[int, float], float] = {}
        self._at: float | None = None

    def read(self) -> Sample | None:
        try:
            used, memory = self._measure()
            total = psutil.virtual_memory().total
        except (psutil.Error, OSError) as error:
            self.complaint = f"no CPU figures: {error}"
            return None
        self.complaint = None
        now = time.monotonic()
        # A process that ended since takes its last fraction of a second with it: the figure is a lower bound.
        busy = sum(seconds - self._used.get(key, 0.0) for key, seconds in used.items())
        last, self._at, self._used = self._at, now, used
        if last is None or now <= last:
            return None  # a rate needs two readings
        share = busy / ((now - last) * self._threads)
        return Sample(
            at=time.time(),
            source="cpu",
            device=self._device,
            utilisation=min(100.0, max(0.0, 100 * share)),
            memory=memory,
            memory_total=total,
        )

    def _measure(self) -> tuple[dict[tuple[int, float], float], int]:
        """(CPU seconds of each living process, resident bytes of all)."""
        used: dict[tuple[int, float], float] = {}
        memory = 0
        root = psutil.Process(self._root)
        for process in (root, *root.children(recursive=True)):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    used[process.pid, process.create_time()] = times.user + times.system
                    memory += process.memory_info().rss
            except psutil.NoSuchProcess:  # it ended while the tree was walked
                continue
        return used, memory
