"""What the trainer tells the supervisor over their pipe.

The client's code runs in the trainer and can write to the pipe as well, so the supervisor reads it as hostile input.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from labapex.errors import MalformedInput
from labapex.protocol.canonical import Message
from labapex.protocol.contract import Environment
from labapex.protocol.packing import pack, unpack
from labapex.protocol.records import MAX_SERIES, Leaf, SeriesName

MAX_EVENT = 256 << 10
MAX_TRACEBACK = 20_000
_LENGTH = struct.Struct(">I")


class Ready(Message):
    """torch is imported; the trainer waits for code and data."""

    type: Literal["ready"] = "ready"
    environment: Environment


class Iteration(Message):
    type: Literal["iteration"] = "iteration"
    step: int = Field(ge=0, lt=2**53)
    loss: float
    at: float


class Committed(Message):
    type: Literal["committed"] = "committed"
    leaf: Leaf


class Scalars(Message):
    """What the script told loggers, by name, before the iteration that comes next was complete."""

    type: Literal["scalars"] = "scalars"
    values: dict[SeriesName, float] = Field(max_length=MAX_SERIES)


class Done(Message):
    """The script has run to its end and everything was recorded."""

    type: Literal["done"] = "done"


class Failed(Message):
    """The script has not: `reason` is its traceback, which the console's limit must not cut off."""

    type: Literal["failed"] = "failed"
    reason: str = Field(max_length=MAX_TRACEBACK)


Event = Ready | Iteration | Committed | Scalars | Done | Failed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


class EventWriter:
    """The trainer's end, a `labapex.proof.sink.Sink`. Blocks while the pipe is full. Any thread may call it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def iteration(self, step: int, loss: float, at: float) -> None:
        self.send(Iteration(step=step, loss=loss, at=at))

    def leaf(self, leaf: Leaf) -> None:
        self.send(Committed(leaf=leaf))

    def scalars(self, values: Mapping[str, float]) -> None:
        self.send(Scalars(values=dict(values)))

    def send(self, event: Event) -> None:
        data = pack(event)
        view = memoryview(_LENGTH.pack(len(data)) + data)
        with self._lock:
            while view:
                view = view[os.write(self._descriptor, view) :]


class EventReader:
    """The supervisor's end: bytes in, events out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that are complete now. Raises `MalformedInput`; the pipe is of no more use then."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_EVENT:
                    raise MalformedInput(f"the trainer sent an event of {length} bytes")
                end = start + _LENGTH.size + length
                if end > len(self._buffer):
                    break
                event = unpack(_EVENT, bytes(self._buffer[start + _LENGTH.size : end]), limit=MAX_EVENT)
                start = end
                yield event
        finally:
            del self._buffer[:start]
