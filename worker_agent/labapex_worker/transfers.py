"""The big files: executable and wheels come down, chunks and states go up. Both over HTTPS with the lease's own token."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO

import httpx

from labapex import durable, executable
from labapex.errors import LabApexError, MalformedInput, Tampered
from labapex.proof import chunks, merkle, statefile
from labapex.protocol.canonical import digest
from labapex.protocol.frames import Grant
from labapex.protocol.requirements import Lock, Wheel
from labapex_worker import downloads
from labapex_worker.config import Config
from labapex_worker.connection import backoff
from labapex_worker.supervisor import Folder
from labapex_worker.trust import Keeper

log = logging.getLogger(__name__)

CHUNK = 1 << 20
SPARE_BYTES = 1 << 30  # what a download leaves free on the disk
DOWNLOAD_TRIES = 30  # in a row without a byte of progress: about a quarter of an hour


class TransferFailed(LabApexError):
    """A file could not be fetched or handed in, and trying again is of no use."""


def client(config: Config) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=config.platform,
        timeout=httpx.Timeout(60, connect=20),
        trust_env=False,
        verify=ssl.create_default_context(),  # as the socket: the host's own authorities count
        follow_redirects=False,
    )


class NoRoom(TransferFailed):
    """There is no room on the disk for a file; `needed` is in bytes, with what is to be left free."""

    def __init__(self, free: int, needed: int) -> None:
        super().__init__(f"{free} bytes are free on this worker's disk; {needed} are needed")
        self.needed = needed


async def fetch(http: httpx.AsyncClient, grant: Grant, folder: Folder, config: Config, keeper: Keeper) -> None:
    """Download a lease's executable, going on where an earlier try stopped, and verify it; where the run comes from another
    host, then the state with which it goes on: the executable looks whether that is the one that was committed to.

    Raises `TransferFailed` where the platform refuses, `NoRoom`, `Tampered` or `MalformedInput` where the
    file is not what the platform signed for this worker and lease; it is deleted then."""
    if grant.size > config.executable_bytes:
        raise TransferFailed(f"the executable has {grant.size} bytes; this worker takes {config.executable_bytes}")
    folder.create()
    if not folder.executable.exists():
        await _download(http, grant, "executable", folder.part, grant.size)
        try:
            await keeper.refresh(http)  # the key that signed it may be newer than what was heard last
            await asyncio.to_thread(_verify, grant, folder, config, keeper)
        except MalformedInput:
            folder.part.unlink()
            raise
        folder.part.chmod(0o555)
        await asyncio.to_thread(_settle, folder)
    after = (await asyncio.to_thread(executable.inspect, folder.executable)).manifest.contract.after
    if after is not None:
        states = folder.job / "states"
        states.mkdir(mode=0o700, exist_ok=True)
        if not (state := states / f"{after.index}.safetensors").exists():
            part = folder.path / "state.part"
            await _download(http, grant, f"states/{after.index}", part, after.size)
            part.rename(state)


async def fetch_wheels(http: httpx.AsyncClient, grant: Grant, lock: Lock, place: Path) -> dict[Wheel, Path]:
    """Download the wheels of a lease's packages into the folder `place`, as `fetch` does. What they hold is for
    `labapex.environments` to verify. Raises `TransferFailed`, `Tampered`."""
    place.mkdir(mode=0o700, exist_ok=True)
    found = {wheel: place / wheel.sha256 for wheel in lock.wheels}
    for wheel, file in found.items():
        await _download(http, grant, f"wheels/{wheel.sha256}", file, wheel.size)
    return found


async def _download(http: httpx.AsyncClient, grant: Grant, what: str, target: Path, size: int) -> None:
    """Have `size` bytes in the file `target`, going on from those that are there."""
    missing = size - (target.stat().st_size if target.exists() else 0)
    if (free := shutil.disk_usage(target.parent).free) < missing + SPARE_BYTES:
        raise NoRoom(free, missing + SPARE_BYTES)
    attempt = 0
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        while (have := file.seek(0, os.SEEK_END)) < size:
            try:
                await _download_once(http, grant, what, file, have, size)
            except (httpx.TransportError, httpx.StreamError) as error:
                log.warning("lease %s: the download stopped: %s", grant.lease, error or type(error).__name__)
            if file.tell() > have:
                attempt = 0
                continue
            attempt += 1
            if attempt > DOWNLOAD_TRIES:
                raise TransferFailed(f"the platform does not hand out {what}")
            await asyncio.sleep(backoff(attempt))
        if have > size:
            raise Tampered(f"{what} has more than the {size} bytes that were promised")


async def _download_once(
    http: httpx.AsyncClient, grant: Grant, what: str, file: IO[bytes], have: int, size: int
) -> None:
    headers = {"Authorization": f"Bearer {grant.token}", **downloads.from_byte(have)}
    async with http.stream("GET", f"/gateway/leases/{grant.lease}/{what}", headers=headers) as response:
        if response.status_code >= 500 or response.status_code in (408, 429):
            log.warning("lease %s: the platform answers %d", grant.lease, response.status_code)
            return
        if response.status_code not in (200, 206):
            raise TransferFailed(f"the platform refuses {what} with status {response.status_code}")
        await downloads.go_on(response, file, have=have, size=size, what=what)


def _settle(folder: Folder) -> None:
    """What was verified is started without another look, also after a power cut."""
    durable.rename(folder.part, folder.executable)
    durable.sync(folder.path.parent)


def _verify(grant: Grant, folder: Folder, config: Config, keeper: Keeper) -> None:
    manifest = executable.verify(folder.part, keeper.trust, config.worker, time.time())
    contract = manifest.contract
    if (contract.lease, contract.job, contract.threads) != (grant.lease, grant.job, grant.threads):
        raise Tampered("the executable was made for another lease")
    if digest(manifest.requirements) != contract.requirements:
        raise Tampered("the executable names other packages than its contract")
    keeper.saw(manifest.release)


async def upload(http: httpx.AsyncClient, grant: Grant, folder: Folder, index: int, deadline: float) -> None:
    """Hand in one opened state, trying again until the deadline (Unix time).

    Raises `TransferFailed` where the platform refuses it, it is not there, or time is up."""
    await _put(http, grant, f"states/{index}", lambda: folder.open_state(index), deadline)


async def upload_chunks(
    http: httpx.AsyncClient, grant: Grant, folder: Folder, number: int, indices: Sequence[int], deadline: float
) -> None:
    """Hand in chunk `number` of the parameters of all these leaves as one file. Raises `TransferFailed` as `upload` does."""
    try:
        await asyncio.to_thread(_gather, folder, number, indices)
    except (OSError, MalformedInput) as error:
        raise TransferFailed(f"chunk {number} cannot be shown: {error}") from None
    await _put(http, grant, f"chunks/{number}", lambda: folder.chunks.open("rb"), deadline)


def _gather(folder: Folder, number: int, indices: Sequence[int]) -> None:
    temporary = folder.chunks.with_suffix(f".{secrets.token_hex(8)}")  # a gathering that was cancelled may still write
    with temporary.open("wb") as answer:
        for index in indices:
            with folder.open_state(index) as state, folder.open_tree(index) as tree:
                most = merkle.HASH_BYTES * (3 + os.fstat(state.fileno()).st_size // statefile.CHUNK)
                answer.write(chunks.show(state, tree.read(most), number))
    temporary.replace(folder.chunks)


async def _put(
    http: httpx.AsyncClient, grant: Grant, what: str, opened: Callable[[], IO[bytes]], deadline: float
) -> None:
    attempt = 0
    while time.time() < deadline:
        try:
            with opened() as file:
                size = os.fstat(file.fileno()).st_size
                headers = {"Authorization": f"Bearer {grant.token}", "Content-Length": str(size)}
                url = f"/gateway/leases/{grant.lease}/{what}"
                response = await http.put(url, content=_chunks(file, size), headers=headers)
        except (OSError, MalformedInput) as error:
            raise TransferFailed(f"{what} cannot be read: {error}") from None
        except httpx.TransportError as error:
            log.warning("lease %s: %s: %s", grant.lease, what, error or type(error).__name__)
        else:
            if response.is_success:
                return
            if response.status_code < 500 and response.status_code not in (408, 429):
                raise TransferFailed(f"the platform refuses {what} with status {response.status_code}")
            log.warning("lease %s: %s: the platform answers %d", grant.lease, what, response.status_code)
        attempt += 1
        await asyncio.sleep(min(backoff(attempt), max(0.0, deadline - time.time())))
    raise TransferFailed(f"{what} could not be handed in before the deadline")


async def _chunks(file: IO[bytes], size: int) -> AsyncIterator[bytes]:
    while size > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK, size))):
        size -= len(chunk)
        yield chunk
