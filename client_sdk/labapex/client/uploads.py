"""One file to the platform, resumed where it broke off: by this process, or by one that was killed in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from labapex.client.connection import Connection, Request
from labapex.errors import LabApexError, PlatformUnreachable, UsageError

_CHUNK = 1 << 18
_MISSING = frozenset({404})


def upload(connection: Connection, digest: str, size: int, path: Path, report: Callable[[int], None]) -> None:
    """Bring the file with this SHA-256 to the platform, unless it is there. `report` is told how many of its bytes are.

    The platform checks the digest of the whole before it takes the file. As long as each attempt gets further than the one
    before, there is another. Raises `UsageError` for a file that cannot be read or shrinks, and what `Connection.call` raises.
    """
    address = f"/api/v1/blobs/{digest}/"
    offset, reached = 0, -1  # bytes that the platform had, before the last attempt and before those of the last round

    def once() -> None:
        nonlocal offset
        found = connection.send(Request("HEAD", address), also=_MISSING)
        if found.status != 404:
            return
        offset = _offset(found.headers.get("Upload-Offset", "0"), size)
        headers = {"Content-Length": str(size - offset), "Content-Type": "application/octet-stream"}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{size - 1}/{size}"
        content = partial(_rest, path, offset, size, report)
        connection.send(Request("PUT", address, content=content, headers=headers))

    while True:
        try:
            connection.persist(once)
            return
        except OSError as error:
            raise UsageError(f"'{path}' cannot be read: {error.strerror}") from None
        except PlatformUnreachable:
            if offset <= reached:
                raise
        except LabApexError as error:
            if (
                error.code != "offset-mismatch" or offset <= reached
            ):  # else another upload of this file went on meanwhile
                raise
        reached = offset


def _offset(text: str, size: int) -> int:
    """Where to go on; from the start where the platform says something that cannot be."""
    offset = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
    return offset if offset < size else 0


def _rest(path: Path, start: int, size: int, report: Callable[[int], None]) -> Iterator[bytes]:
    sent = start
    with path.open("rb") as file:
        file.seek(start)
        while sent < size:
            report(sent)
            chunk = file.read(min(_CHUNK, size - sent))
            if not chunk:
                raise UsageError(f"'{path}' became shorter while it was being sent; run the command again")
            yield chunk
            sent += len(chunk)
    report(sent)
