"""The big files: the executable comes down, opened states go up. Both over HTTPS with the lease's own token."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from typing import IO

import httpx

from labapex import executable
from labapex.errors import LabApexError, MalformedInput, Tampered
from labapex.protocol.frames import Grant
from labapex_worker.config import Config
from labapex_worker.connection import backoff
from labapex_worker.supervisor import Folder

log = logging.getLogger(__name__)

CHUNK = 1 << 20
SPARE_BYTES = 1 << 30  # what a download leaves free on the disk
DOWNLOAD_TRIES = 30  # in a row without a byte of progress: about a quarter of an hour


class TransferFailed(LabApexError):
    """A file could not be fetched or handed in, and trying again is of no use."""


def client(config: Config) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=config.platform, timeout=httpx.Timeout(60, connect=20), trust_env=False, follow_redirects=False
    )


async def fetch(http: httpx.AsyncClient, grant: Grant, folder: Folder, config: Config) -> None:
    """Download a lease's executable, going on where an earlier try stopped, and verify it.

    Raises `TransferFailed` where the platform refuses or there is no room, `Tampered` or `MalformedInput` where the
    file is not what the platform signed for this worker and lease; it is deleted then."""
    if grant.size > config.executable_bytes:
        raise TransferFailed(f"the executable has {grant.size} bytes; this worker takes {config.executable_bytes}")
    folder.create()
    if not folder.executable.exists():
        missing = grant.size - (folder.part.stat().st_size if folder.part.exists() else 0)
        if (free := shutil.disk_usage(folder.path).free) < missing + SPARE_BYTES:
            raise TransferFailed(f"{free} bytes are free on this worker's disk; {missing + SPARE_BYTES} are needed")
        await _download(http, grant, folder)
        try:
            await asyncio.to_thread(_verify, grant, folder, config)
        except MalformedInput:
            folder.part.unlink()
            raise
        folder.part.chmod(0o555)
        folder.part.rename(folder.executable)


async def _download(http: httpx.AsyncClient, grant: Grant, folder: Folder) -> None:
    attempt = 0
    with os.fdopen(os.open(folder.part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as file:
        while (have := file.seek(0, os.SEEK_END)) < grant.size:
            try:
                await _download_once(http, grant, file, have)
            except (httpx.TransportError, httpx.StreamError) as error:
                log.warning("lease %s: the download stopped: %s", grant.lease, error or type(error).__name__)
            if file.tell() > have:
                attempt = 0
                continue
            attempt += 1
            if attempt > DOWNLOAD_TRIES:
                raise TransferFailed("the platform does not hand out the executable")
            await asyncio.sleep(backoff(attempt))
        if have > grant.size:
            raise Tampered(f"the executable has more than the {grant.size} bytes that were promised")


async def _download_once(http: httpx.AsyncClient, grant: Grant, file: IO[bytes], have: int) -> None:
    headers = {"Authorization": f"Bearer {grant.token}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    async with http.stream("GET", f"/gateway/leases/{grant.lease}/executable", headers=headers) as response:
        if response.status_code >= 500 or response.status_code in (408, 429):
            log.warning("lease %s: the platform answers %d", grant.lease, response.status_code)
            return
        if response.status_code not in (200, 206):
            raise TransferFailed(f"the platform refuses the executable with status {response.status_code}")
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not (response.status_code == 206 and resumed):
            file.truncate(0)  # it begins anew, so do we
            file.seek(0)
        async for chunk in response.aiter_raw():
            if file.tell() + len(chunk) > grant.size:
                raise Tampered(f"the executable has more than the {grant.size} bytes that were promised")
            file.write(chunk)


def _verify(grant: Grant, folder: Folder, config: Config) -> None:
    manifest = executable.verify(folder.part, config.manifest_key, config.worker, time.time())
    contract = manifest.contract
    if (contract.lease, contract.job, contract.threads) != (grant.lease, grant.job, grant.threads):
        raise Tampered("the executable was made for another lease")


async def upload(http: httpx.AsyncClient, grant: Grant, folder: Folder, index: int, deadline: float) -> None:
    """Hand in one opened state, trying again until the deadline (Unix time).

    Raises `TransferFailed` where the platform refuses it, it is not there, or time is up."""
    url = f"/gateway/leases/{grant.lease}/states/{index}"
    attempt = 0
    while time.time() < deadline:
        try:
            with folder.open_state(index) as file:
                size = os.fstat(file.fileno()).st_size
                headers = {"Authorization": f"Bearer {grant.token}", "Content-Length": str(size)}
                response = await http.put(url, content=_chunks(file, size), headers=headers)
        except (OSError, MalformedInput) as error:
            raise TransferFailed(f"state {index} cannot be read: {error}") from None
        except httpx.TransportError as error:
            log.warning("lease %s: state %d: %s", grant.lease, index, error or type(error).__name__)
        else:
            if response.is_success:
                return
            if response.status_code < 500 and response.status_code not in (408, 429):
                raise TransferFailed(f"the platform refuses state {index} with status {response.status_code}")
            log.warning("lease %s: state %d: the platform answers %d", grant.lease, index, response.status_code)
        attempt += 1
        await asyncio.sleep(min(backoff(attempt), max(0.0, deadline - time.time())))
    raise TransferFailed(f"state {index} could not be handed in before the deadline")


async def _chunks(file: IO[bytes], size: int) -> AsyncIterator[bytes]:
    while size > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK, size))):
        size -= len(chunk)
        yield chunk
