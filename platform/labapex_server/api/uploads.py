"""`PUT /api/v1/blobs/<sha256>/`: a client's file, streamed from the socket into its sealed place.

Token, length and limit are checked before a byte is read; memory stays at a few chunks; plaintext never lies on disk. An
upload that broke off goes on: `HEAD` of the address says how much is here (`Upload-Offset`), and a `PUT` with `Content-Range`
brings the rest.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from django.conf import settings
from django.db import close_old_connections

from labapex.protocol.api import Scope as TokenScope
from labapex_server.accounts.models import User
from labapex_server.accounts.services import TokenRefused
from labapex_server.api import limits
from labapex_server.api.authentication import NO_TOKEN, SCHEME, demand, token_of
from labapex_server.jobs import blobs
from labapex_server.lib.errors import Missing, NeedsLength, OffsetMismatch, Refused, TooLarge
from labapex_server.lib.http import Left, Receive, Scope, Send, body, content_length, drain, headers, problem, respond
from labapex_server.telemetry.offload import offload

_PATH = re.compile(r"/api/v1/blobs/([0-9a-f]{64})/")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_IDLE_SECONDS = 60.0
_WAITING_CHUNKS = 8
_PER_USER = 4
_BUSY_SECONDS = 2.0

_pool = ThreadPoolExecutor(16, thread_name_prefix="upload")
_uploading: Counter[int] = Counter()


class Busy(Refused):
    status = 429
    code = "throttled"

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """201 for a new file, 200 for one that is here; else a problem."""
    try:
        new = await _put(scope, receive)
    except Refused as error:
        await problem(
            send, error.status, error.code, str(error), instance=scope["path"], extra=dict(_extra_fields(error))
        )
        await drain(receive)
    except Left:
        return
    else:
        await respond(send, 201 if new else 200)
        if not new:
            await drain(receive)


def _extra_fields(error: Refused) -> Iterator[tuple[str, str]]:
    if isinstance(error, OffsetMismatch):
        yield "Upload-Offset", str(error.offset)
    if isinstance(error, Busy):
        yield "Retry-After", str(int(error.seconds) + 1)
    if error.status == 401:
        yield "WWW-Authenticate", SCHEME


async def _put(scope: Scope, receive: Receive) -> bool:
    fields = headers(scope)
    token = await offload(token_of, fields.get("authorization", ""))
    if token is None:
        raise TokenRefused(NO_TOKEN)
    demand(token, TokenScope.JOBS_WRITE)
    if wait := await offload(limits.spend, f"token.{token.pk}"):
        raise Busy(limits.TOO_MANY, wait)
    user = token.user
    found = _PATH.fullmatch(scope["path"])
    if found is None:
        raise Missing("a file's address is its SHA-256 in 64 lower-case hexadecimal digits")
    length = content_length(fields)
    if length is None:
        raise NeedsLength
    offset, size = _range(fields.get("content-range"), length)
    if size > settings.LABAPEX.blob_limit_bytes:
        raise TooLarge(f"the file has {size} bytes; at most {settings.LABAPEX.blob_limit_bytes} are accepted")
    if await offload(blobs.find, user, found[1]) is not None:
        return False
    if _uploading[user.pk] >= _PER_USER:
        raise Busy(f"{_PER_USER} uploads are under way; wait for one to end", _BUSY_SECONDS)
    _uploading[user.pk] += 1
    try:
        return await _store(user, found[1], offset, size, receive)
    finally:
        _uploading[user.pk] -= 1
        if not _uploading[user.pk]:
            del _uploading[user.pk]


def _range(text: str | None, length: int) -> tuple[int, int]:
    """(offset, size of the whole file): a body that is the rest of a file says so by Content-Range (RFC 9110, 14.5)."""
    if text is None:
        return 0, length
    found = _CONTENT_RANGE.fullmatch(text)
    if found is None:
        raise Refused("Content-Range must be 'bytes FIRST-LAST/SIZE', for example 'bytes 1048576-2999999/3000000'")
    first, last, size = map(int, found.groups())
    if last != size - 1 or last - first + 1 != length:
        raise Refused("Content-Range must reach to the file's end, and its length must be that of the body")
    return first, size


async def _store(user: User, digest: str, offset: int, size: int, receive: Receive) -> bool:
    pipe = _Pipe()
    storing = asyncio.get_running_loop().run_in_executor(_pool, _work, user, digest, pipe, offset, size)
    try:
        await _pump(receive, pipe, storing)
    except BaseException as error:
        pipe.fail(error if isinstance(error, Refused) else Left())
        if isinstance(error, Refused | Left):
            return await storing  # which raises it, after it has cleaned up
        raise
    return await storing


async def _pump(receive: Receive, pipe: _Pipe, storing: asyncio.Future[bool]) -> None:
    """Body to pipe, until the body ends or the other end has what it needs."""
    advice = "go on from where it is, or send the file again"
    async for part in body(receive, idle=_IDLE_SECONDS, advice=advice):
        await pipe.put(part)
        if storing.done():
            break
    pipe.close()


def _work(user: User, digest: str, pipe: _Pipe, offset: int, size: int) -> bool:
    close_old_connections()
    try:
        return blobs.store(user, digest, pipe, size=size, offset=offset)[1]
    finally:
        pipe.abandon()
        close_old_connections()


class _Pipe:
    """From the event loop to a thread: bounded, so that a fast client waits for a slow disk."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._chunks: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._free = asyncio.Semaphore(_WAITING_CHUNKS)
        self._abandoned = threading.Event()
        self._rest = b""
        self._ended = False

    async def put(self, chunk: bytes) -> None:
        if chunk and not self._abandoned.is_set():
            await self._free.acquire()
            self._chunks.put(chunk)

    def close(self) -> None:
        self._chunks.put(b"")

    def fail(self, error: BaseException) -> None:
        self._chunks.put(error)

    def abandon(self) -> None:
        """In the thread: nothing more is read."""
        self._abandoned.set()
        self._loop.call_soon_threadsafe(self._free.release)

    def read(self, size: int, /) -> bytes:
        """In the thread: what is there, at most `size` bytes; empty at the end. Raises what `fail` was given."""
        if not self._rest and not self._ended:
            chunk = self._chunks.get()
            if isinstance(chunk, BaseException):
                raise chunk
            self._ended = not chunk
            if chunk:
                self._loop.call_soon_threadsafe(self._free.release)
            self._rest = chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
