"""What this host trains on. Without an NVIDIA driver it is the CPU, and it is called that everywhere."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from pathlib import Path

import pynvml

log = logging.getLogger(__name__)

_NODES = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


@dataclass(frozen=True)
class Device:
    """`memory` in bytes; None where the device does not say."""

    kind: str  # "cuda" or "cpu"
    name: str
    memory: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"[:200]


def find() -> tuple[Device, ...]:
    """The GPUs that the driver names; where there is no driver, the CPU."""
    return gpus() or (Device("cpu", _cpu_name()),)


def gpus() -> tuple[Device, ...]:
    """The GPUs that NVML names, none where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no NVIDIA driver: %s", error)
        return ()
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as error:  # a GPU that fell off the bus must not keep the worker from saying what it has
        log.error("the NVIDIA driver does not answer: %s", error)
        return ()
    finally:
        pynvml.nvmlShutdown()


def nodes() -> tuple[Path, ...]:
    """The device files that a job needs to use the GPUs."""
    return tuple(sorted(path for pattern in _NODES for path in Path("/dev").glob(pattern) if path.is_char_device()))


def _gpu(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    try:
        memory: int | None = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError as error:  # some devices share the host's memory and have none of their own to name
        log.debug("GPU %d names no memory: %s", index, error)
        memory = None
    return Device("cuda", name.decode() if isinstance(name, bytes) else str(name), memory)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError as error:
        log.debug("no /proc/cpuinfo: %s", error)
    return platform.processor() or platform.machine()
