"""Is this file laid out as safetensors? Its header is read under a cap; no tensor is loaded, no library is asked.

The format (huggingface/safetensors, README "Format"): 8 bytes little-endian length N, N bytes of JSON that maps names to
{dtype, shape, data_offsets}, then the data, which the offsets cover without gap or overlap.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, BinaryIO

from labapex.errors import MalformedInput

MAX_HEADER = 16 << 20
MAX_DIMENSIONS = 64

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def check_layout(file: BinaryIO, size: int) -> None:
    """Return where `file`, which has `size` bytes, is laid out as safetensors; raises `MalformedInput`."""
    prefix = file.read(8)
    if len(prefix) != 8:
        raise MalformedInput("a state file begins with the 8 bytes of its header's length")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER, size - 8):
        raise MalformedInput(f"a header of {length} bytes in a file of {size}; at most {MAX_HEADER} are accepted")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise MalformedInput("the state file's header is not JSON") from None
    if not isinstance(header, dict):
        raise MalformedInput("the state file's header is not a mapping of names")
    spans = sorted(_span(name, entry) for name, entry in header.items() if name != "__metadata__")
    position = 0
    for begin, end in spans:
        if begin != position:
            raise MalformedInput("the state file's tensors overlap or leave a gap")
        position = end
    if position != size - 8 - length:
        raise MalformedInput("the state file's tensors do not cover its data")


def _span(name: str, entry: Any) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedInput("a tensor has dtype, shape and data_offsets, and nothing else")
    bits, shape, offsets = BITS.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None, *_lists(entry)
    if bits is None or len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise MalformedInput("a tensor has an unknown dtype, too many dimensions, or not two offsets")
    begin, end = offsets
    if 8 * (end - begin) != bits * math.prod(shape):
        raise MalformedInput("a tensor's offsets do not fit its shape")
    return begin, end


def _lists(entry: dict[str, Any]) -> tuple[list[int], list[int]]:
    for value in (entry["shape"], entry["data_offsets"]):
        if not isinstance(value, list) or any(type(n) is not int or not 0 <= n < 2**53 for n in value):
            raise MalformedInput("a tensor's shape and offsets are lists of natural numbers")
    return entry["shape"], entry["data_offsets"]


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found
