"""Secret files: written once, complete or not at all, readable by the owner only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def secret_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of `path`; where it is missing it is made, and of several processes that try, one wins."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return path.read_bytes()
    finally:
        temporary.unlink()
    return path.read_bytes()


def size_of(path: Path) -> int | None:
    """Bytes; None where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def modified_at(path: Path) -> float | None:
    """Unix time; None where it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
