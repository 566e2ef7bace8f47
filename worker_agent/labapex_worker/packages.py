"""The packages of jobs on this host: wheels come from the platform, are verified and unpacked, and are kept for the next job.

No code of theirs runs here, and nothing asks an index: what a job gets is what the platform tried it with.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import httpx

from labapex import executable
from labapex.environments import NoRoom, Store
from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.frames import Grant
from labapex.protocol.requirements import Wheel
from labapex_worker import transfers
from labapex_worker.config import Config, Home
from labapex_worker.supervisor import Folder


def store(home: Home, config: Config) -> Store:
    return Store(home.environments, config.environment_bytes)


async def prepare(http: httpx.AsyncClient, grant: Grant, folder: Folder, home: Home, config: Config) -> None:
    """Have the packages of a fetched lease ready for its start.

    Raises `LabApexError` or `OSError` with the reason: a wheel cannot be had or is not the signed one, or there is no room."""
    manifest = executable.inspect(folder.executable).manifest
    lock, kept = manifest.requirements, store(home, config)
    if not lock.wheels:
        return
    wheels: dict[Wheel, Path] = {}
    if kept.find(manifest.contract.requirements) is None:
        if lock.size > config.environment_bytes:
            raise NoRoom(f"the wheels have {lock.size} bytes; this worker sets {config.environment_bytes} aside")
        wheels = await transfers.fetch_wheels(http, grant, lock, folder.wheels)
    try:
        await asyncio.to_thread(lambda: kept.make(lock, wheels, keep=in_use(home)))
    finally:
        await asyncio.to_thread(shutil.rmtree, folder.wheels, ignore_errors=True)


def of(folder: Folder, home: Home, config: Config) -> Path | None:
    """The packages that a lease's executable needs; None where it needs none. Raises `LabApexError` where they are gone."""
    manifest = executable.inspect(folder.executable).manifest
    if not manifest.requirements.wheels:
        return None
    found = store(home, config).find(manifest.contract.requirements)
    if found is None:
        raise LabApexError(f"the job's packages are no longer in {home.environments}")
    return found


def in_use(home: Home) -> frozenset[str]:
    """The packages that leases on this host may still need, whether they run or not."""
    found = set()
    for path in (home.path / "jobs").iterdir():
        with contextlib.suppress(FileNotFoundError, MalformedInput):  # not fetched yet, or being deleted
            found.add(executable.inspect(Folder(path).executable).manifest.contract.requirements)
    return frozenset(found)
