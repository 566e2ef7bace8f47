"""A state file as named entries with a digest each, so that two states of a run can be compared piece by piece.

An entry is a scalar of the structure, the keys or the length of a container, a tensor (its type, shape and bytes), or
which rows of a trained matrix are nothing but zeros: a unit that was pruned stays so, since no gradient reaches it. No tensors
in memory here; a file is read as a stream, and what it says is hostile.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from labapex.errors import MalformedInput
from labapex.proof import statefile

_LARGE = 1024  # items of a container that is one entry as a whole
_MANY = 1 << 15  # entries of a structure, and tensors; containers that come after these are one entry each
_VALUES = 1 << 21  # commas and brackets of a structure that is taken apart at all
_BLOCK = 1 << 20
_ROW = 16 << 20  # bytes of a row that is still looked at
_ROWS = 1 << 20  # of one matrix


def entries(path: Path) -> dict[str, bytes]:
    """The entries of a state file by name. A structure, or tensors, that are too much to be taken apart are one empty entry,
    which differs from that of any other state.

    Raises `MalformedInput` for what is no state file."""
    with path.open("rb") as file:
        found = statefile.layout(file)
        if len(found.tensors) > _MANY:
            return {"structure": b"", "tensors": b""}
        trained = set(found.parameters)
        digests = {**_structure(found), "tensors": _digest(sorted(found.tensors))}
        for name, entry in found.tensors.items():
            digest, zeros = _tensor(file, entry, rows=name in trained)
            digests[f"tensors/{name}"] = digest
            if zeros is not None:
                digests[f"zeros/{name}"] = zeros
    return {sys.intern(name): digest for name, digest in digests.items()}  # hundreds of states have the same names


def _structure(found: statefile.Layout) -> dict[str, bytes]:
    text = found.metadata.get("structure")
    if isinstance(text, str) and sum(map(text.count, ",[{")) > _VALUES:
        return {"structure": b""}
    try:
        return dict(_flat(found.structure))
    except (MalformedInput, RecursionError):
        return {"structure": b""}


def _flat(structure: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Entries of a structure, by paths whose parts are escaped as in RFC 6901."""
    waiting: list[tuple[str, Any]] = [("structure", structure)]
    made = 0
    while waiting:
        path, node = waiting.pop()
        made += 1
        if not isinstance(node, dict | list) or len(node) > _LARGE or made > _MANY:
            yield path, _digest(node)
        elif isinstance(node, dict):
            yield path, _digest(sorted(node))
            waiting += [(f"{path}/{key.replace('~', '~0').replace('/', '~1')}", node[key]) for key in node]
        else:
            yield path, _digest(len(node))
            waiting += [(f"{path}/{number}", item) for number, item in enumerate(node)]


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _tensor(file: BinaryIO, entry: statefile.Entry, *, rows: bool) -> tuple[bytes, bytes | None]:
    """A tensor's digest, and one of which of its rows are zero where it is a matrix whose rows are asked for."""
    state = hashlib.sha256(f"{entry.type}{list(entry.shape)}".encode())
    size = entry.stop - entry.start
    count = entry.shape[0] if rows and len(entry.shape) > 1 and size else 0
    width = size // count if 0 < count <= _ROWS else 0
    if width > _ROW:
        width = 0
    step = max(width, _BLOCK // width * width) if width else _BLOCK
    zeros = bytearray()
    file.seek(entry.start)
    for start in range(0, size, step):
        piece = file.read(min(step, size - start))
        state.update(piece)
        if width:  # a sign, the highest bit of an element, makes no difference
            zeros += bytes(not piece[at : at + width].lstrip(b"\x00\x80") for at in range(0, len(piece), width))
    return state.digest(), hashlib.sha256(zeros).digest() if width else None
