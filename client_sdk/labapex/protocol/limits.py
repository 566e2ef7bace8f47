"""What a job may take of its host: asked for by its client, signed in its contract, held to by its supervisor."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from labapex.protocol.canonical import Message

MAX_SIZE = 2**50  # bytes: more than any host has, and exact in every JSON
LEAST_MEMORY = 512 << 20  # torch alone takes half of it
LEAST_DISK = 256 << 20
LEAST_PROCESSES = 16  # and threads: those of the interpreter and of torch among them
MAX_PROCESSES = 1 << 20

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def read_size(text: str) -> int:
    """`200G`, `1.5 TiB`, `500000000`: bytes, in powers of 1024. Raises `ValueError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or not (amount := int(Decimal(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))):
        raise ValueError(f"'{text[:40]}' is no size; write it like 200G")
    return amount


def _bytes(value: Any) -> Any:
    return read_size(value) if isinstance(value, str) else value


Memory = Annotated[int, BeforeValidator(_bytes), Field(ge=LEAST_MEMORY, le=MAX_SIZE)]
Disk = Annotated[int, BeforeValidator(_bytes), Field(ge=LEAST_DISK, le=MAX_SIZE)]
Processes = Annotated[int, Field(ge=LEAST_PROCESSES, le=MAX_PROCESSES)]


class Wish(Message):
    """`limits` of labapex.yaml. None: what the platform gives to jobs that do not ask."""

    memory: Memory | None = None  # of all processes together
    disk: Disk | None = (
        None  # what the script may write, besides the job's files and the states that are kept of the run
    )
    processes: Processes | None = None  # and threads


class Limits(Message):
    """What one job may take; or what a host has for one. Sizes in bytes."""

    memory: int = Field(ge=0, le=MAX_SIZE)  # of all processes together
    disk: int = Field(ge=0, le=MAX_SIZE)  # all files in the job's folder, in memory or not
    processes: int = Field(ge=0, le=MAX_PROCESSES)  # and threads

    def beyond(self, room: Limits) -> list[str]:
        """The names of those of these limits for which `room` is too small."""
        return [name for name in ("memory", "disk", "processes") if getattr(self, name) > getattr(room, name)]
