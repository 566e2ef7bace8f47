"""What a host says of the devices that it trains on. Its owner can make it say anything: shown, compared, never believed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from labapex.protocol.canonical import Message

MAX_DEVICES = 64
MAX_BYTES = 2**53  # integers beyond this do not survive JSON
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]  # Unix time
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, le=MAX_BYTES)]
Watts = Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)]
_Word = Annotated[str, StringConstraints(max_length=80)]

Throttle = Literal[
    "idle",
    "application-clocks",
    "power-cap",
    "hardware-slowdown",
    "sync-boost",
    "thermal",
    "hardware-thermal",
    "power-brake",
    "display-clocks",
    "board-limit",
    "reliability",
    "other",
]
"""Why a GPU's clock is not at its highest, as NVML's bits say it; "idle" means that nothing is to be done."""


class Device(Message):
    """One device of a host. None: the device does not tell. A device that is not `usable` gets no job, and `note` says why."""

    kind: Literal["cuda", "cpu"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=180)]
    uuid: _Word | None = None
    memory: Bytes | None = None
    driver: _Word | None = None
    cuda: _Word | None = None  # the newest that the driver can run, "13.0"
    capability: _Word | None = None  # compute capability, "9.0"
    mig: bool | None = None
    ecc: bool | None = None
    power_limit: Watts | None = None
    usable: bool = True
    note: Annotated[str, StringConstraints(max_length=500)] = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


class Observation(Message):
    """One reading of a GPU by the agent, from outside of the sandbox, where it sees whose processes load the device.

    `job_*` and `other_*` are None where the driver does not tell the agent what each process takes."""

    at: Seconds
    device: _Word  # UUID
    utilisation: Percent
    memory: Bytes
    job_utilisation: Percent | None = None
    job_memory: Bytes | None = None
    other_utilisation: Percent | None = None
    other_memory: Bytes | None = None
    others: Annotated[int, Field(ge=0, le=10_000)] | None = None  # processes that are not the job's
