"""Files that are named on the command line. What cannot be read is a `UsageError` that names the file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

from labapex.errors import UsageError
from labapex.protocol.canonical import Message, parse

M = TypeVar("M", bound=Message)


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def document(model: type[M], path: Path, *, limit: int) -> M:
    """A document of at most `limit` bytes. Raises `MalformedInput`, too."""
    with reading(path) as file:
        return parse(model, file.read(limit + 1), limit=limit)


def sha256(path: Path) -> str:
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
