"""Files that are there after a power cut: what is written lies in the kernel's memory for half a minute, and so do names.

Where something is acknowledged, or cannot be had a second time, it goes through here first. The order is content, name,
folder, as in fsync(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put a file in the place of what is there, if anything: after a power cut it is the one or the other, whole.

    Not for several writers at once. Raises `OSError`."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    rename(part, path)


def rename(source: Path, target: Path) -> None:
    """Give a file that is complete its name, in the same folder. Raises `OSError`."""
    sync(source)
    source.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(files: Iterable[Path]) -> None:
    """`sync` of files and of the folders that they are in."""
    found = list(files)
    for path in (*found, *sorted({path.parent for path in found})):
        sync(path)
