"""What this host trains on. Without an NVIDIA driver it is the CPU, and it is called that everywhere."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import psutil

from labapex import nvml
from labapex.protocol.devices import MAX_DEVICES, Device, Observation

log = logging.getLogger(__name__)

_NODES = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_driver = nvml.Driver()


@dataclass(frozen=True)
class Load:
    """What some processes take of a GPU: percent of its time, bytes of its memory (None: the driver does not tell)."""

    utilisation: float
    memory: int | None
    processes: int


@dataclass(frozen=True)
class Reading:
    """One look at a device. `ours` and `foreign` are None where the driver does not tell whose processes load it."""

    utilisation: float  # percent
    memory: int  # bytes in use
    power: float | None  # watts
    temperature: int | None  # degrees Celsius
    ours: Load | None
    foreign: Load | None


def find() -> tuple[Device, ...]:
    """What the host has: the GPUs that the driver names and, where none of them can be used, the CPU, which says why."""
    try:
        found, problem = _driver.devices()[: MAX_DEVICES - 1], "no GPU of this host can be used"
    except nvml.DriverProblem as error:
        found, problem = (), str(error)
    if any(gpu.usable for gpu in found):
        return found
    note = f"{problem}; jobs run on the CPU, and their samples are the CPU's"
    return (*found, Device(kind="cpu", name=_cpu_name()[:180], memory=psutil.virtual_memory().total, note=note[:500]))


def gpus() -> tuple[Device, ...]:
    """The GPUs that jobs may use."""
    return tuple(device for device in find() if device.kind == "cuda" and device.usable)


def visible() -> dict[str, str]:
    """Environment variables by which a job sees the GPUs that it may use, in the order of `gpus`, and no others.

    Nothing on a host without any: there is nothing to be hidden."""
    found = [device for device in find() if device.kind == "cuda"]
    if not found:
        return {}
    names = [device.uuid for device in found if device.usable and device.uuid is not None]
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(names)}


def readings(device: Device, ours: Collection[int] = ()) -> Reading | None:
    """One look at a GPU; None for a CPU, and where the driver gives no figures just now, which is logged.

    `ours` are processes whose descendants, and they themselves, are not foreign."""
    try:
        return look(device, ours)
    except nvml.DriverProblem as problem:
        log.warning("%s: no figures: %s", device, problem)
        return None


def look(device: Device, ours: Collection[int] = ()) -> Reading | None:
    """Likewise, but raises `nvml.DriverProblem`, among them `GpuLost`."""
    if device.uuid is None:
        return None
    now, found = _driver.read(device.uuid), _processes(device.uuid, "look")
    split = (None, None) if found is None else _split(found, ours)
    return Reading(now.utilisation, now.memory, now.power, now.temperature, *split)


def observe(device: Device, jobs: Mapping[UUID, int]) -> dict[UUID, Observation]:
    """One look at the GPU for each lease whose processes descend from the given one. Raises `nvml.DriverProblem`."""
    if device.uuid is None:
        return {}
    at, now, found = time.time(), _driver.read(device.uuid), _processes(device.uuid, "observe")
    whole = Observation(at=at, device=device.uuid, utilisation=now.utilisation, memory=now.memory)
    if found is None:
        return dict.fromkeys(jobs, whole)
    seen = {}
    for lease, root in jobs.items():
        job, others = _split(found, [root])
        seen[lease] = whole.model_copy(
            update={
                "job_utilisation": job.utilisation,
                "job_memory": job.memory,
                "other_utilisation": others.utilisation,
                "other_memory": others.memory,
                "others": others.processes,
            }
        )
    return seen


_seen: dict[tuple[str, str], int] = {}  # by UUID and reader: up to where the driver's samples of processes were read


def _processes(uuid: str, reader: str) -> list[tuple[nvml.Process, frozenset[int]]] | None:
    """Each process that uses the GPU, with the line of its ancestors and itself.

    None where that cannot be told: the driver does not tell, or names a process that is in no namespace of ours (the agent
    runs in a container) or ended just now."""
    told = _driver.processes(uuid, _seen.get((uuid, reader), 0))
    if told is None:
        return None
    found, _seen[uuid, reader] = told
    try:
        return [
            (each, frozenset({each.pid, *(parent.pid for parent in psutil.Process(each.pid).parents())}))
            for each in found
        ]
    except psutil.Error:
        return None


def _split(found: list[tuple[nvml.Process, frozenset[int]]], ours: Collection[int]) -> tuple[Load, Load]:
    """(what our processes take, what all others take)."""
    mine = [process for process, line in found if not line.isdisjoint(ours)]
    others = [process for process, line in found if line.isdisjoint(ours)]
    return _sum(mine), _sum(others)


def _sum(processes: list[nvml.Process]) -> Load:
    told = [process.memory for process in processes if process.memory is not None]
    memory = sum(told) if len(told) == len(processes) else None
    return Load(min(100.0, sum(process.utilisation for process in processes)), memory, len(processes))


def nodes() -> tuple[Path, ...]:
    """The device files that a job needs to use the GPUs."""
    return tuple(sorted(path for pattern in _NODES for path in Path("/dev").glob(pattern) if path.is_char_device()))


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or platform.machine()
    except OSError as error:
        log.debug("no /proc/cpuinfo: %s", error)
    return platform.processor() or platform.machine()
