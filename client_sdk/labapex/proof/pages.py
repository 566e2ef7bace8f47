"""Memory in whole pages, and files that go from there to the disk past the kernel's cache.

For what is written once and seldom read: finding a page of the cache for each page of a file and copying into it costs more CPU
time than SHA-256 of the same bytes; a disk that takes memory as it lies costs next to nothing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch

PAGE = 4096  # bytes: addresses, lengths and places in a file that every usual disk takes are multiples of it
_AT_ONCE = 16 << 20  # bytes of one call
_REFUSALS = (
    errno.EINVAL,
    errno.EOPNOTSUPP,
)  # what a file system says that knows no such writes, or of larger pages only


class Pages:
    """`size` bytes that begin at a page's first byte: `tensor` and `bytes`; `padded` goes on to the end of the last page."""

    def __init__(self, size: int) -> None:
        whole = torch.empty(padded(size) + PAGE, dtype=torch.uint8)
        begin = -whole.data_ptr() % PAGE
        self.tensor = whole[begin : begin + size]
        self.padded = memoryview(whole.numpy().data)[begin : begin + padded(size)]
        self.padded[size:] = bytes(padded(size) - size)
        self.bytes = self.padded[:size]


def padded(size: int) -> int:
    """`size` bytes rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def write(path: Path, *pieces: Pages) -> bool:
    """Write a file of these pieces, of which all but the last fill their pages. False where the file system takes no such
    writes: then what is there has to be written anew. Raises `OSError`."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_DIRECT, 0o666)
        try:
            for piece in pieces:
                at = 0
                while part := piece.padded[at : at + _AT_ONCE]:
                    at += os.write(file, part)
            os.ftruncate(file, sum(len(piece.bytes) for piece in pieces))
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in _REFUSALS:
            return False
        raise
    return True
