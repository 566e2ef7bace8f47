"""What a frame carries once it is opened: losses, samples, console, leaves, series. Columns are little-endian float64."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from labapex.errors import MalformedInput
from labapex.protocol.canonical import Digest, Message, digest
from labapex.protocol.devices import Throttle, Watts

MAX_RECORDS = 4096
MAX_CONSOLE = 64 * 1024
MAX_SERIES = 64
MAX_NAME = 200


class Sample(Message):
    """One reading of the device that trains. On a host without an NVIDIA driver it is the CPU's, and says so."""

    at: float = Field(ge=0)  # Unix time, seconds
    source: Literal["nvml", "cpu"]
    device: str = Field(max_length=200)
    utilisation: float = Field(ge=0, le=100)  # percent
    memory: int = Field(ge=0)  # bytes in use
    memory_total: int = Field(ge=0)  # bytes
    # What a GPU tells besides; None: it does not.
    uuid: str | None = Field(default=None, max_length=80)
    power: Watts | None = None
    temperature: int | None = Field(default=None, ge=-273, le=1000)  # degrees Celsius
    clock: int | None = Field(default=None, ge=0, le=100_000)  # of the multiprocessors, MHz
    throttled: tuple[Throttle, ...] = Field(default=(), max_length=12)


class Leaf(Message):
    """The commitment to the whole state after `step` iterations, and to what happened since the leaf before it."""

    index: int = Field(ge=0)
    step: int = Field(ge=0)
    state: Digest  # Merkle root over the state's entries
    size: int = Field(ge=0)  # bytes of the state file
    chunks: int = Field(
        ge=1, lt=2**40
    )  # entries of the state's tree: the header, and what any of its chunks is shown with
    settings: Digest  # of the hyper-parameters of all optimizers, as they are after `step` iterations
    update_norm: float | None = Field(ge=0, allow_inf_nan=False)  # l2 norm of the parameters' change; None: not finite
    batches: Digest  # of the batch index digests since the last leaf
    losses: Digest  # SHA-256 over the float64 losses since the last leaf
    prev: Digest  # digest of the leaf before; of the contract for the first

    def digest(self) -> str:
        return digest(self)


class Console(Message):
    stream: Literal["stdout", "stderr"]
    text: str = Field(max_length=MAX_CONSOLE)


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("must be printable")
    return name


SeriesName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_printable)]


class Series(Message):
    """What a script told a logger under one name, a point an iteration at most. Its own words: nobody verifies them."""

    name: SeriesName
    iterations: tuple[Annotated[int, Field(ge=0, lt=2**53)], ...] = Field(min_length=1, max_length=MAX_RECORDS + 1)
    values: bytes  # a column

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.values) != 8 * len(self.iterations):
            raise ValueError("must have one float64 for each iteration")
        if any(a >= b for a, b in pairwise(self.iterations)):
            raise ValueError("iterations must ascend")
        return self


class FrameBody(Message):
    """The plaintext of one frame. `losses` and `times` are columns of equal length, one row an iteration."""

    losses: bytes = b""
    times: bytes = b""
    samples: tuple[Sample, ...] = Field(default=(), max_length=256)
    console: tuple[Console, ...] = Field(default=(), max_length=256)
    leaves: tuple[Leaf, ...] = Field(default=(), max_length=256)
    series: tuple[Series, ...] = Field(default=(), max_length=MAX_SERIES)
    failure: str | None = Field(default=None, max_length=20_000)  # the script ended with this error; nothing follows

    @field_validator("losses", "times")
    @classmethod
    def _column(cls, value: bytes) -> bytes:
        if len(value) % 8 or len(value) > 8 * MAX_RECORDS:
            raise ValueError(f"must be a column of at most {MAX_RECORDS} float64")
        return value

    @field_validator("series")
    @classmethod
    def _distinct(cls, value: tuple[Series, ...]) -> tuple[Series, ...]:
        if len({series.name for series in value}) < len(value):
            raise ValueError("a name may come once in a frame")
        return value

    def count(self) -> int:
        """The number of loss records. Raises `MalformedInput` where the columns differ in length."""
        if len(self.losses) != len(self.times):
            raise MalformedInput("a frame's loss and time columns differ in length")
        return len(self.losses) // 8


def column(values: list[float]) -> bytes:
    """A list of floats as little-endian float64."""
    return struct.pack(f"<{len(values)}d", *values)


def uncolumn(data: bytes) -> list[float]:
    """The floats of a little-endian float64 column."""
    return list(struct.unpack(f"<{len(data) // 8}d", data))


def finite(data: bytes) -> list[float | None]:
    """A column as JSON can carry it: None for what is not finite."""
    return [value if math.isfinite(value) else None for value in uncolumn(data)]
