"""One chunk of the parameters of every state that was kept: of which leaves it is asked, and how long it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vectors.independent.forms import Document
from tests.vectors.independent.refused import Refused
from tests.vectors.independent.trees import height

if TYPE_CHECKING:
    from tests.vectors.independent.folder import Folder

CHUNK = 16 * 1024
WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def count(folder: Folder) -> int:
    """Chunks to draw from: none where no type of the parameters can be measured."""
    known = any(stretch["type"] in WIDTHS for stretch in folder.contract["facts"]["layout"])
    return _chunks(folder) if known else 0


def asked(folder: Folder) -> list[Document]:
    """The leaves of which the chunk is asked: those whose states the host kept, until a norm is null."""
    kept = folder.kept(len(folder.leaves) - 1)
    ends = [n for n, leaf in enumerate(folder.leaves) if n and leaf["update_norm"] is None]
    return [leaf for n, leaf in enumerate(folder.leaves) if n in kept and n < min(ends, default=n + 1)]


def lengths(folder: Folder, leaf: Document, number: int, stage: str) -> tuple[int, int]:
    """Bytes of a leaf's chunk and of its path."""
    if leaf["chunks"] < 1 + _chunks(folder) or number >= _chunks(folder):
        raise Refused(stage, f"leaf {leaf['index']} has no such chunk")
    return min(CHUNK, _total(folder) - number * CHUNK), 32 * height(1 + number, leaf["chunks"])


def _total(folder: Folder) -> int:
    return sum(stretch["size"] for stretch in folder.contract["facts"]["layout"])


def _chunks(folder: Folder) -> int:
    return -(-_total(folder) // CHUNK)
