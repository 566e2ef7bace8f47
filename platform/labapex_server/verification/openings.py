"""What a worker opens: whole states, taken in as a stream, and looked at without loading a tensor.

Whether a state hashes to its leaf is found out in the sandbox; here it must be of the committed size and well formed.
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from django.conf import settings

from labapex_server.jobs.blobs import Readable
from labapex_server.lib.errors import Refused, TooLarge
from labapex_server.lib.files import fsync_folder
from labapex_server.marketplace.models import Lease

_CHUNK = 1 << 20
_MAX_HEADER = 100 << 20  # the format's own limit
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8, "C64": 8,
}  # fmt: skip


def receive(lease: Lease, index: int, stream: Readable, *, size: int) -> Path:
    """Store exactly `size` bytes as the lease's state `index`. Raises `Refused`; then nothing is left of them."""
    folder: Path = settings.LABAPEX.private_folder("leases", str(lease.pk), "states")
    final = folder / f"{index}.safetensors"
    temporary = folder / f".{index}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            left = size
            while left and (chunk := stream.read(min(_CHUNK, left))):
                file.write(chunk)
                left -= len(chunk)
            if left:
                raise Refused(f"state {index}: the upload ended {left} bytes early; send it again")
            if stream.read(1):
                raise TooLarge(f"state {index}: more than the {size} bytes that its leaf commits to")
            file.flush()
            os.fsync(file.fileno())
        check_header(temporary, size)
        temporary.rename(final)
        fsync_folder(folder)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return final


def check_header(path: Path, size: int) -> None:
    """Raise `Refused` unless the file is laid out as safetensors: a header, and tensors that cover the rest exactly."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise Refused("the state is no safetensors file: its header has an impossible length")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise Refused("the state is no safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise Refused("the state is no safetensors file: its header is no mapping")
    header.pop("__metadata__", None)
    spans = sorted(_span(name, entry) for name, entry in header.items())
    end = 0
    for start, stop in spans:
        if start != end:
            raise Refused("the state is no safetensors file: its tensors overlap or leave a gap")
        end = stop
    if end != size - 8 - length:
        raise Refused("the state is no safetensors file: its tensors do not cover it")


def _span(name: str, entry: Any) -> tuple[int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if len(entry) == 3:
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
            if whole and dtype in _WIDTHS and prod(shape) * _WIDTHS[dtype] == stop - start:
                return start, stop
    raise Refused(f"the state is no safetensors file: the entry {name[:80]!r} is malformed")
