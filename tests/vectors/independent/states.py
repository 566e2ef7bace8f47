"""State files: a tree of a header, the parameters in chunks, and all else in chunks."""

from __future__ import annotations

import json
import math
import struct

from tests.vectors.independent.canonical import canonical
from tests.vectors.independent.chunks import CHUNK
from tests.vectors.independent.forms import Document
from tests.vectors.independent.trees import entry_hash

TYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1),
    "BOOL": ("bool", 1), "C64": ("complex64", 8), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip


def tree(data: bytes) -> tuple[list[bytes], list[Document]]:
    """A state file's entries, hashed, and the layout of its parameters. Raises `ValueError` and the like."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    said, body = header.pop("__metadata__"), data[8 + length :]
    parameters, structure = json.loads(said["parameters"]), json.loads(said["structure"])
    end = 0
    for each in sorted(header.values(), key=lambda each: each["data_offsets"]):
        start, stop = each["data_offsets"]
        if start != end or stop - start != TYPES[each["dtype"]][1] * math.prod(each["shape"]):
            raise ValueError("tensors that do not cover the file")
        end = stop
    if end != len(body) or not set(parameters) <= header.keys() or not isinstance(structure, dict):
        raise ValueError("no state file")
    shapes = [[name, f"torch.{TYPES[header[name]['dtype']][0]}", header[name]["shape"]] for name in sorted(header)]
    entries = [canonical({"parameters": sorted(parameters), "structure": structure, "tensors": shapes})]
    for names in (set(parameters), header.keys() - set(parameters)):
        order = sorted(names, key=lambda name: (-TYPES[header[name]["dtype"]][1], name))
        stream = b"".join(body[slice(*header[name]["data_offsets"])] for name in order)
        entries += [stream[at : at + CHUNK] for at in range(0, len(stream), CHUNK)]
    return [entry_hash(entry) for entry in entries], _layout(header, set(parameters))


def _layout(header: Document, names: set[str]) -> list[Document]:
    found: list[Document] = []
    for name in sorted(names, key=lambda name: (-TYPES[header[name]["dtype"]][1], name)):
        kind, (start, stop) = TYPES[header[name]["dtype"]][0], header[name]["data_offsets"]
        if found and found[-1]["type"] == kind:
            found[-1]["size"] += stop - start
        elif stop > start:
            found.append({"size": stop - start, "type": kind})
    return found
