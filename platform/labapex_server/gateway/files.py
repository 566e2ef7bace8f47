"""The big files of a lease: its executable goes out, chunks and states come in. A raw ASGI application beside Django.

Django reads a whole request to disk before any of its code runs, so it could refuse an upload only once the disk is
full; and its file responses under ASGI hold the file in memory. Here nothing is read before token, address and length
are found right, and memory stays at a chunk.

    GET /gateway/leases/<lease>/executable      Authorization: Bearer <token of the grant>; Range for resuming
    GET /gateway/leases/<lease>/wheels/<sha256> likewise, of the packages that its manifest names
    GET /gateway/leases/<lease>/states/<leaf>   the same, of the state with which the lease's run goes on
    PUT /gateway/leases/<lease>/chunks/<number> Content-Length must be what contract and leaves give
    PUT /gateway/leases/<lease>/states/<leaf>   Content-Length must be the committed size
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from django.conf import settings

from labapex.errors import LabApexError
from labapex.executable import Layout
from labapex.protocol.manifest import Manifest
from labapex.protocol.states import LeaseState
from labapex_server.jobs import packages
from labapex_server.lib import clock, logs, metrics
from labapex_server.lib.errors import Missing, NeedsLength, Refused, TooLarge
from labapex_server.lib.http import Left, Receive, Scope, Send, body, content_length, headers, problem, respond
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.offload import offload
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge, OpenedState

log = logging.getLogger(__name__)

PATH = re.compile(
    r"/gateway/leases/([0-9a-f-]{36})/(?:(executable)|wheels/([0-9a-f]{64})|(chunks|states)/([0-9]{1,18}))"
)
RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})?")
CHUNK = 1 << 20
IDLE_SECONDS = 30.0
UPLOADS_PER_LEASE = 4

_uploading: Counter[UUID] = Counter()


class BadToken(Refused):
    status = 401
    code = "bad-token"


class Late(Refused):
    status = 410
    code = "too-late"


class BadRange(Refused):
    status = 416
    code = "bad-range"


class Unprocessable(Refused):
    status = 422
    code = "malformed-state"


class Busy(Refused):
    status = 429
    code = "too-many-uploads"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """One request."""
    found = PATH.fullmatch(scope["path"])
    fields = headers(scope)
    try:
        if found is None:
            raise Missing("there is nothing here")
        lease = await _authenticated(found[1], fields)
        logs.about(job=lease.job_id, lease=lease.pk, worker=lease.worker_id)
        if found[4] != "chunks" and scope["method"] in ("GET", "HEAD"):
            kind = found[2] or found[4] or "wheels"
            await _download(await _served(lease, found), kind, scope["method"], fields, receive, send)
        elif found[4] and scope["method"] == "PUT":
            new = await _upload(_Wanted(lease, found[4], int(found[5])), fields, receive)
            await respond(send, 200, b'{"stored":true,"new":%s}\n' % (b"true" if new else b"false"))
        else:
            text = "GET an executable, a wheel or a state, PUT chunks or a state"
            await problem(send, 405, "method-not-allowed", text)
    except Refused as error:
        await problem(send, error.status, error.code, str(error))
    except Left:
        return
    except LabApexError:
        log.exception("a lease's file could not be served")
        await problem(send, 500, "unavailable", "the platform could not do this; try again later")


async def _authenticated(lease: str, fields: dict[str, str]) -> Lease:
    scheme, _, token = fields.get("authorization", "").partition(" ")
    try:
        identity = UUID(lease)
    except ValueError:
        raise Missing("this is no lease") from None
    found = None
    if scheme.lower() == "bearer":
        found = await offload(marketplace.authenticate, identity, token)
    if found is None:
        raise BadToken("send 'Authorization: Bearer <token>' with the token of this lease's grant; it may be over")
    return found


# -- the executable, the packages that it needs, and the state that it goes on from ----------------------------------------


async def _served(lease: Lease, found: re.Match[str]) -> Layout:
    """What a path names. Raises `Missing`."""
    if lease.state not in (LeaseState.GRANTED, LeaseState.RUNNING):
        raise Missing("nothing is served any more: the run is complete")
    if found[2]:
        return await offload(marketplace.executable_parts, lease)
    if found[3]:
        return await offload(_wheel, lease, found[3])
    return await offload(_state, lease, int(found[5]))


async def _download(made: Layout, kind: str, method: str, asked: dict[str, str], receive: Receive, send: Send) -> None:
    start, stop, partial = _range(asked, made.size)
    fields = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(stop - start).encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"no-store"),
    ]
    if partial:
        fields.append((b"content-range", f"bytes {start}-{stop - 1}/{made.size}".encode()))
    await send({"type": "http.response.start", "status": 206 if partial else 200, "headers": fields})
    if method == "GET":
        await _pour(made, start, stop, receive, send)
        metrics.LEASE_BYTES.labels("out", kind).inc(stop - start)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _wheel(lease: Lease, sha256: str) -> Layout:
    """A wheel that this lease's manifest names, and no other."""
    named = Manifest.model_validate(lease.manifest)
    for lock in (named.requirements, *([named.torch.packages] if named.torch else [])):
        for wheel in lock.wheels:
            if wheel.sha256 == sha256:
                return Layout((packages.kept(wheel),), (wheel.size,))
    raise Missing("this lease needs no such wheel")


def _state(lease: Lease, index: int) -> Layout:
    """The state with which this lease's run goes on, and no other."""
    path = verification.handed_over(lease, index)
    return Layout((path,), (path.stat().st_size,))


def _range(fields: dict[str, str], size: int) -> tuple[int, int, bool]:
    """(first byte, byte after the last, whether a range was asked for). A form that we do not know means everything."""
    found = RANGE.fullmatch(fields.get("range", ""))
    if found is None:
        return 0, size, False
    start, stop = int(found[1]), size if found[2] is None else min(int(found[2]) + 1, size)
    if start >= size or stop <= start:
        raise BadRange(f"the file has {size} bytes")
    return start, stop, True


async def _pour(made: Layout, start: int, stop: int, receive: Receive, send: Send) -> None:
    """Send these bytes, a chunk in memory at a time, until the other side leaves."""
    gone = asyncio.ensure_future(_gone(receive))
    try:
        chunks, left = made.stream(start, CHUNK), stop - start
        while left and not gone.done():
            chunk = await offload(_following, chunks)
            if not chunk:
                raise Left
            await send({"type": "http.response.body", "body": chunk[:left], "more_body": True})
            left -= min(left, len(chunk))
        if left:
            raise Left
    finally:
        gone.cancel()


def _following(chunks: Iterator[bytes]) -> bytes:
    return next(chunks, b"")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# -- opened states -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """What an upload is of: a chunk by its number, or a state by its leaf."""

    lease: Lease
    kind: str  # "chunks" or "states"
    number: int

    def seconds(self, length: int) -> float | None:
        """Until the deadline of an upload that is asked for and fits; None: it is stored already."""
        size = self._chunks() if self.kind == "chunks" else self._state()
        if size is None:
            return None
        if length != size:
            raise Unprocessable(f"{self.kind}/{self.number} must have {size} bytes; {length} are announced")
        if self._early:
            return float(settings.LABAPEX.opening_seconds)
        return (Challenge.objects.get(lease=self.lease).deadline - clock.now()).total_seconds()

    @property
    def _early(self) -> bool:
        """While the job trains: for another host to go on from."""
        return self.kind == "states" and self.lease.state == LeaseState.RUNNING

    def accept(self, path: Path) -> None:
        accept = verification.accept_chunks if self.kind == "chunks" else verification.accept_state
        if self._early:
            accept = verification.keep_state
        with path.open("rb") as file:
            accept(self.lease, self.number, file)

    def _chunks(self) -> int | None:
        return verification.expected_chunks(self.lease, self.number)

    def _state(self) -> int | None:
        if self._early:
            leaf = verification.expected_to_keep(self.lease, self.number)
            return None if leaf is None else leaf.size
        if OpenedState.objects.filter(lease=self.lease, index=self.number).exists():
            # it may be the last one, and the process died on it
            verification.accept_state(self.lease, self.number, io.BytesIO())
            return None
        size = verification.expected_state(self.lease, self.number).size
        if size > settings.LABAPEX.result_limit_bytes:
            raise TooLarge(f"a state of {size} bytes; at most {settings.LABAPEX.result_limit_bytes} are accepted")
        return size


async def _upload(wanted: _Wanted, fields: dict[str, str], receive: Receive) -> bool:
    """Take one file in. False: it was there already, and its bytes were not read."""
    length = content_length(fields)
    if length is None:
        raise NeedsLength
    seconds = await offload(wanted.seconds, length)
    if seconds is None:
        return False
    lease = wanted.lease.pk
    if _uploading[lease] >= UPLOADS_PER_LEASE:
        raise Busy(f"{UPLOADS_PER_LEASE} uploads of this lease are under way; wait for one to end")
    _uploading[lease] += 1
    try:
        await _take_in(wanted, length, seconds, receive)
        metrics.LEASE_BYTES.labels("in", wanted.kind).inc(length)
    finally:
        _uploading[lease] -= 1
        if not _uploading[lease]:
            del _uploading[lease]
    return True


async def _take_in(wanted: _Wanted, size: int, seconds: float, receive: Receive) -> None:
    folder: Path = settings.LABAPEX.private_folder("leases", str(wanted.lease.pk), "incoming")
    path = folder / f"{wanted.number}.{secrets.token_hex(8)}"
    try:
        try:
            async with asyncio.timeout(seconds):
                await _spool(path, size, receive)
        except TimeoutError:
            raise Late("the upload did not end before the deadline") from None
        await offload(wanted.accept, path)
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


async def _spool(path: Path, size: int, receive: Receive) -> None:
    """Exactly `size` bytes of the request's body to a new file."""
    file: BinaryIO = await offload(_create, path)
    try:
        received, waiting = 0, bytearray()
        async for part in body(receive, idle=IDLE_SECONDS, advice="send the file again"):
            waiting += part
            received += len(part)
            if received > size:
                raise Unprocessable(f"more than the announced {size} bytes")
            if len(waiting) >= CHUNK:
                await offload(file.write, bytes(waiting))
                waiting.clear()
        if received != size:
            raise Unprocessable(f"the upload ended after {received} of {size} bytes; send it again")
        await offload(file.write, bytes(waiting))
    finally:
        await offload(file.close)


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
