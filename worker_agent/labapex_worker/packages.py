"""The packages of jobs on this host, and torch where it has none: wheels come from the platform, are verified and unpacked, and
are kept for the next job.

No code of theirs runs here, and nothing asks an index: what a job gets is what the platform tried it with.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx

from labapex import drivers, durable, executable
from labapex.environments import NoRoom, Store
from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.canonical import canonical, digest, parse
from labapex.protocol.frames import Grant
from labapex.protocol.manifest import MAX_MANIFEST, Manifest, SuppliedTorch
from labapex.protocol.requirements import Lock, Wheel
from labapex_worker import transfers
from labapex_worker.config import Config, Home
from labapex_worker.supervisor import Folder


def store(home: Home, config: Config) -> Store:
    return Store(home.environments, config.environment_bytes)


class Ready(NamedTuple):
    """Folders of packages with which a lease's executable is started."""

    own: Path | None  # the job's; None where it asks for none
    torch: Path | None  # the platform's; None where this host has its own


async def prepare(http: httpx.AsyncClient, grant: Grant, folder: Folder, home: Home, config: Config) -> None:
    """Have the packages of a fetched lease ready for its start.

    Raises `LabApexError` or `OSError` with the reason: a wheel cannot be had or is not the signed one, or there is no room."""
    manifest = executable.inspect(folder.executable).manifest
    kept = store(home, config)
    for lock in _locks(manifest):
        wheels: dict[Wheel, Path] = {}
        if kept.find(digest(lock)) is None:
            if lock.size > config.environment_bytes:
                raise NoRoom(f"the wheels have {lock.size} bytes; this worker sets {config.environment_bytes} aside")
            wheels = await transfers.fetch_wheels(http, grant, lock, folder.wheels)
        try:
            await asyncio.to_thread(partial(kept.make, lock, wheels, keep=in_use(home)))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder.wheels, ignore_errors=True)
    if manifest.torch is not None:
        durable.write(home.torch, canonical(manifest.torch))


def of(folder: Folder, home: Home, config: Config) -> Ready:
    """The packages that a lease's executable needs. Raises `LabApexError` where they are gone."""
    manifest, kept = executable.inspect(folder.executable).manifest, store(home, config)
    found = {lock: kept.find(digest(lock)) for lock in _locks(manifest)}
    if None in found.values():
        raise LabApexError(f"the job's packages are no longer in {home.environments}")
    torch = found.get(manifest.torch.packages) if manifest.torch is not None else None
    return Ready(found.get(manifest.requirements), torch)


def lacks_torch(config: Config) -> bool:
    """Whether jobs on this host need the platform's torch."""
    return drivers.installed(config.site_packages) is None


def supplied(home: Home) -> SuppliedTorch | None:
    """The torch that came with a job last. Raises `MalformedInput` where that cannot be read."""
    try:
        return parse(SuppliedTorch, home.torch.read_bytes(), limit=MAX_MANIFEST)
    except FileNotFoundError:
        return None


def torch(home: Home, config: Config) -> Path | None:
    """The platform's torch, where this host has none of its own and a job brought one that is still here."""
    if not lacks_torch(config) or (came := supplied(home)) is None:
        return None
    return store(home, config).find(digest(came.packages))


def _locks(manifest: Manifest) -> tuple[Lock, ...]:
    """What an executable needs beside it."""
    torch = (manifest.torch.packages,) if manifest.torch is not None else ()
    return (*torch, *((manifest.requirements,) if manifest.requirements.wheels else ()))


def in_use(home: Home) -> frozenset[str]:
    """The packages that leases on this host may still need, whether they run or not."""
    found: set[str] = set()
    for path in (home.path / "jobs").iterdir():
        with contextlib.suppress(FileNotFoundError, MalformedInput):  # not fetched yet, or being deleted
            found |= {digest(lock) for lock in _locks(executable.inspect(Folder(path).executable).manifest)}
    return frozenset(found)
