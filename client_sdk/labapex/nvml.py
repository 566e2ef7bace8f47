"""The NVIDIA driver's own figures (NVML), each of its errors by its name.

What a device does not support, or does not show to this user, is None. What is wrong with the driver or the device itself
is raised as a `DriverProblem` in words that say what to do; `GpuLost` and `NoDriver` are told apart because they have
consequences: the lease is given back, the host is a CPU worker. Source: NVML API Reference Guide, "nvmlReturn_t" and
"nvmlClocksEventReasons".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pynvml

from labapex.errors import LabApexError
from labapex.protocol.devices import MAX_BYTES, Device, Throttle

T = TypeVar("T")

_REASONS: dict[int, Throttle] = {
    0x001: "idle",
    0x002: "application-clocks",
    0x004: "power-cap",
    0x008: "hardware-slowdown",
    0x010: "sync-boost",
    0x020: "thermal",
    0x040: "hardware-thermal",
    0x080: "power-brake",
    0x100: "display-clocks",
    0x200: "board-limit",
    0x400: "reliability",
}
_WORDS = {
    pynvml.NVML_ERROR_UNINITIALIZED: "the NVIDIA driver was closed while it was asked; it is asked again",
    pynvml.NVML_ERROR_NO_PERMISSION: "the NVIDIA driver refuses this user; let it read and write /dev/nvidia*",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded; load it: modprobe nvidia",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver is installed (libnvidia-ml.so.1 was not found)",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver was updated and the old one still runs; restart the host",
    pynvml.NVML_ERROR_TIMEOUT: "the NVIDIA driver did not answer in time",
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost: it fell off the bus or cannot be reached; see dmesg (Xid), restart the host",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU must be reset before it can be used: nvidia-smi --gpu-reset, or restart the host",
}
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_ABSENT = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_UNTOLD = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,  # an older driver than the figure
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_NO_DATA,
)
_NOTHING = (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS)  # pynvml raises the latter for an empty list of samples
MIG_NOTE = (
    "in MIG mode, which is not supported: a slice tells no utilisation and shares its clock; switch it off:"
    " nvidia-smi -i {uuid} -mig 0"
)


class DriverProblem(LabApexError):
    """The driver or a device does not answer; the message says why and what to do."""


class NoDriver(DriverProblem):
    """There is no NVIDIA driver at work on this host."""


class GpuLost(DriverProblem):
    """The device is gone until somebody sees to the host."""


@dataclass(frozen=True)
class Reading:
    """One look at a GPU. `utilisation` in percent of the time in which a kernel ran, memory in bytes, power in watts,
    temperature in degrees Celsius, clock of the multiprocessors in MHz."""

    name: str
    utilisation: float
    memory: int
    memory_total: int
    power: float | None
    temperature: int | None
    clock: int | None
    throttled: tuple[Throttle, ...]


@dataclass(frozen=True)
class Process:
    """What a process (by the pid that this process sees it under) takes of a GPU; `memory` None: the driver does not tell."""

    pid: int
    memory: int | None
    utilisation: float  # percent, 0 where the driver saw none lately


class Driver:
    """NVML, opened when it is first asked and kept open: on an idle host the first call may take a second.

    No handle outlives a call, so a lost GPU or a reloaded driver needs no second thought. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = False

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                try:
                    pynvml.nvmlShutdown()
                except pynvml.NVMLError as error:
                    raise _problem(error) from None

    def devices(self) -> tuple[Device, ...]:
        """Every GPU of the host in NVML's order; one that does not answer is there, and not usable.

        Raises `NoDriver`, and `DriverProblem` where the driver does not even count them."""
        count = self._ask(pynvml.nvmlDeviceGetCount)
        driver = self._told(pynvml.nvmlSystemGetDriverVersion)
        newest = self._told(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        cuda = None if newest is None else f"{newest // 1000}.{newest % 1000 // 10}"
        found = []
        for index in range(count):
            try:
                found.append(self._device(index, driver, cuda))
            except DriverProblem as problem:
                found.append(Device(kind="cuda", name=f"GPU {index}", driver=driver, usable=False, note=str(problem)))
        return tuple(found)

    def read(self, which: str | int) -> Reading:
        """One reading of a GPU by its UUID or NVML's index. Raises `DriverProblem`."""
        handle = self._handle(which)
        rates = self._ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        power = self._told(pynvml.nvmlDeviceGetPowerUsage, handle)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        temperature = self._either(pynvml.nvmlDeviceGetTemperatureV, pynvml.nvmlDeviceGetTemperature, handle, sensor)
        reasons = self._either(
            pynvml.nvmlDeviceGetCurrentClocksEventReasons, pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle
        )
        clock = self._told(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM)
        return Reading(
            name=self._name(handle),
            utilisation=min(100.0, float(rates.gpu)),
            memory=_bytes(memory.used),
            memory_total=_bytes(memory.total),
            power=None if power is None else power / 1000,
            temperature=temperature,
            clock=clock,
            throttled=throttled(reasons or 0),
        )

    def processes(self, which: str | int, since: int = 0) -> tuple[tuple[Process, ...], int] | None:
        """What each process takes of a GPU, and the time stamp to ask `since` the next time (microseconds, the driver's own).

        None: the driver does not tell, or not this user. Raises `DriverProblem`."""
        handle = self._handle(which)
        running = self._told(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle)
        if running is None:
            running = self._told(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle)
        if running is None:
            return None
        try:
            samples = self._told(pynvml.nvmlDeviceGetProcessUtilization, handle, since)
        except _Nothing:  # no process used the device since then
            samples = []
        if samples is None:
            return None
        busy: dict[int, float] = {}
        for sample in samples:
            if sample.smUtil <= 100:  # drivers are known to leave entries that were never filled in
                busy[sample.pid] = max(busy.get(sample.pid, 0.0), float(sample.smUtil))
        memory = {each.pid: None if each.usedGpuMemory is None else _bytes(each.usedGpuMemory) for each in running}
        found = tuple(Process(pid, memory.get(pid, 0), busy.get(pid, 0.0)) for pid in sorted({*memory, *busy} - {0}))
        return found, max((sample.timeStamp for sample in samples), default=since)

    # ------------------------------------------------------------------------------------------------------------------

    def _device(self, index: int, driver: str | None, cuda: str | None) -> Device:
        handle = self._ask(pynvml.nvmlDeviceGetHandleByIndex, index)
        memory = self._told(pynvml.nvmlDeviceGetMemoryInfo, handle)
        capability = self._told(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        mig, ecc = self._mode(pynvml.nvmlDeviceGetMigMode, handle), self._mode(pynvml.nvmlDeviceGetEccMode, handle)
        power = self._told(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
        uuid = self._told(pynvml.nvmlDeviceGetUUID, handle)
        note = ""
        if uuid is None:
            note = "it tells no UUID, by which a job would be given this device and no other; update the driver"
        if mig:
            note = MIG_NOTE.format(uuid=uuid or index)
        return Device(
            kind="cuda",
            name=self._name(handle),
            uuid=_clip(uuid),
            memory=None if memory is None else _bytes(memory.total),
            driver=_clip(driver),
            cuda=cuda,
            capability=None if capability is None else f"{capability[0]}.{capability[1]}",
            mig=mig,
            ecc=ecc,
            power_limit=None if power is None else power / 1000,
            usable=not note,
            note=note,
        )

    def _handle(self, which: str | int) -> object:
        if isinstance(which, int):
            return self._ask(pynvml.nvmlDeviceGetHandleByIndex, which)
        return self._ask(pynvml.nvmlDeviceGetHandleByUUID, which)

    def _name(self, handle: object) -> str:
        return (str(self._ask(pynvml.nvmlDeviceGetName, handle)) or "a GPU without a name")[:180]

    def _mode(self, function: Callable[..., list[int]], handle: object) -> bool | None:
        modes = self._told(function, handle)  # [now, after the next reset]
        return None if modes is None else bool(modes[0])

    def _either(self, newer: Callable[..., int], older: Callable[..., int], *arguments: object) -> int | None:
        """NVML renamed some of its functions; a driver may know one name only."""
        found = self._told(newer, *arguments)
        return self._told(older, *arguments) if found is None else found

    def _told(self, function: Callable[..., T], *arguments: object) -> T | None:
        """What the driver answers; None for what the device or the driver has not got, or shows to others only."""
        try:
            return self._ask(function, *arguments)
        except _Untold:
            return None

    def _ask(self, function: Callable[..., T], *arguments: object) -> T:
        with self._lock:
            for last in (False, True):
                try:
                    if not self._open:
                        pynvml.nvmlInit()
                        self._open = True
                    return function(*arguments)
                except pynvml.NVMLError as error:
                    if cast(Any, error).value != pynvml.NVML_ERROR_UNINITIALIZED or last:
                        raise _problem(error) from None
                    self._open = False  # somebody else in this process closed it
        raise AssertionError("the second try returns or raises")


class _Untold(DriverProblem):
    """This one figure is not to be had."""


class _Nothing(DriverProblem):
    """NVML has found nothing of what was asked for."""


def throttled(reasons: int) -> tuple[Throttle, ...]:
    """The words for NVML's bit mask of what holds the clock down; bits that this version does not know are "other"."""
    known = tuple(word for bit, word in _REASONS.items() if reasons & bit)
    return (*known, "other") if reasons & ~sum(_REASONS) else known


def _problem(error: pynvml.NVMLError) -> DriverProblem:
    code = cast(Any, error).value
    kind = (
        GpuLost if code in _LOST
        else NoDriver if code in _ABSENT
        else _Untold if code in _UNTOLD
        else _Nothing if code in _NOTHING
        else DriverProblem
    )  # fmt: skip
    return kind(_WORDS.get(code) or f"the NVIDIA driver says: {error}")


def _bytes(value: int) -> int:
    return min(int(value), MAX_BYTES)


def _clip(text: str | None) -> str | None:
    return None if text is None else text[:80]
