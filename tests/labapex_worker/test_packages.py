"""A host makes a job's packages ready: from the platform alone, once for all jobs that need the same, and within its quota."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from tests import wheels
from tests.labapex.authority import Authority
from tests.labapex_worker import fake_executable

from labapex.environments import NoRoom
from labapex.errors import LabApexError, Tampered
from labapex.protocol.canonical import digest
from labapex.protocol.frames import Grant
from labapex.protocol.manifest import SuppliedTorch
from labapex.protocol.requirements import Lock, Wheel
from labapex_worker import packages
from labapex_worker.config import Config, Home
from labapex_worker.supervisor import Folder
from labapex_worker.transfers import TransferFailed

WORKER = UUID(int=7)


async def _stream(content: bytes) -> AsyncIterator[bytes]:
    yield content


class Platform:
    """Hands out wheels, and remembers which."""

    def __init__(self, found: dict[Wheel, Path]) -> None:
        self.content = {wheel.sha256: path.read_bytes() for wheel, path in found.items()}
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        self.asked.append(name)
        if name not in self.content:
            return httpx.Response(404)
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        rest = self.content[name][start:]
        size = len(self.content[name])
        span = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        return httpx.Response(206 if start else 200, content=_stream(rest), headers=span)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://platform")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


def config(quota: int = 1 << 20) -> Config:
    return Config(
        platform="http://platform",
        worker=WORKER,
        name="box",
        root=bytes(32),
        site_packages=(),
        environment_bytes=quota,
    )


def a_lease(home: Home, tmp_path: Path, lock: Lock, torch: SuppliedTorch | None = None) -> tuple[Grant, Folder]:
    """A lease whose executable was fetched."""
    lease = uuid4()
    parts = tmp_path / lease.hex
    parts.mkdir()
    made = fake_executable.make(
        parts, authority=Authority(), worker=WORKER, lease=lease, job=uuid4(), plan={}, packages=lock, torch=torch
    )
    folder = Folder(home.lease(lease))
    folder.create()
    folder.executable.write_bytes(made)
    return Grant(lease=lease, job=uuid4(), name="digits", token="t", size=1, threads=1), folder


def a_lock(tmp_path: Path, name: str, size: int = 1000) -> tuple[Lock, dict[Wheel, Path]]:
    return wheels.locked([wheels.make(tmp_path, name, files={f"{name}.bin": os.urandom(size)})])


async def ready(platform: Platform, grant: Grant, folder: Folder, home: Home, quota: int = 1 << 20) -> packages.Ready:
    async with platform.client() as http:
        await packages.prepare(http, grant, folder, home, config(quota))
    return packages.of(folder, home, config(quota))


async def test_packages_are_fetched_once_and_serve_every_lease_that_needs_them(home: Home, tmp_path: Path) -> None:
    lock, found = a_lock(tmp_path, "alpha")
    platform = Platform(found)
    first, _ = await ready(platform, *a_lease(home, tmp_path, lock), home)
    second, _ = await ready(platform, *a_lease(home, tmp_path, lock), home)
    assert first is not None
    assert first == second == home.environments / digest(lock) / "packages"
    assert (first / "alpha.bin").stat().st_size == 1000
    assert platform.asked == [lock.wheels[0].sha256]
    assert not list(home.path.rglob("wheels"))


async def test_a_job_without_requirements_asks_for_nothing(home: Home, tmp_path: Path) -> None:
    platform = Platform({})
    assert await ready(platform, *a_lease(home, tmp_path, Lock()), home) == (None, None)
    assert platform.asked == []
    assert not home.environments.exists()


async def test_a_download_that_was_killed_goes_on_where_it_stopped(home: Home, tmp_path: Path) -> None:
    lock, found = a_lock(tmp_path, "alpha")
    ((wheel, path),) = found.items()
    grant, folder = a_lease(home, tmp_path, lock)
    folder.wheels.mkdir()
    (folder.wheels / wheel.sha256).write_bytes(path.read_bytes()[:700])
    assert (await ready(Platform(found), grant, folder, home)).own is not None


async def test_a_wheel_that_is_not_the_signed_one_or_is_not_given_ends_with_the_reason(
    home: Home, tmp_path: Path
) -> None:
    lock, found = a_lock(tmp_path, "alpha")
    platform = Platform(found)
    content = platform.content[lock.wheels[0].sha256]
    platform.content[lock.wheels[0].sha256] = bytes([content[0] ^ 1]) + content[1:]
    with pytest.raises(Tampered, match="is not the file that was locked"):
        await ready(platform, *a_lease(home, tmp_path, lock), home)
    with pytest.raises(TransferFailed, match=r"refuses wheels/[0-9a-f]{64} with status 404"):
        await ready(Platform({}), *a_lease(home, tmp_path, lock), home)
    assert packages.store(home, config()).find(digest(lock)) is None


async def test_what_a_lease_needs_stays_though_there_is_no_room_for_another(home: Home, tmp_path: Path) -> None:
    (first, one), (second, two) = a_lock(tmp_path, "alpha"), a_lock(tmp_path, "beta")
    grant, folder = a_lease(home, tmp_path, first)
    assert (await ready(Platform(one), grant, folder, home, quota=2400)).own is not None
    with pytest.raises(NoRoom, match="in use"):
        await ready(Platform(two), *a_lease(home, tmp_path, second), home, quota=2400)
    assert packages.of(folder, home, config()).own is not None
    folder.remove()  # its lease is over
    assert (await ready(Platform(two), *a_lease(home, tmp_path, second), home, quota=2400)).own is not None
    assert packages.store(home, config()).find(digest(first)) is None


async def test_torch_comes_once_to_a_host_without_and_stays_as_long_as_a_lease_needs_it(
    home: Home, tmp_path: Path
) -> None:
    (lock, own), (torch, wheel) = a_lock(tmp_path, "alpha"), wheels.supplied(wheels.a_torch(tmp_path))
    platform, without = Platform({**own, **wheel}), config()
    assert packages.lacks_torch(without)
    assert packages.torch(home, without) is None
    first = await ready(platform, *a_lease(home, tmp_path, Lock(), torch), home)
    second = await ready(platform, *a_lease(home, tmp_path, lock, torch), home)
    assert first == (None, home.environments / digest(torch.packages) / "packages")
    assert second == (home.environments / digest(lock) / "packages", first.torch)
    assert platform.asked == [torch.packages.wheels[0].sha256, lock.wheels[0].sha256]
    assert packages.torch(home, without) == first.torch
    assert packages.in_use(home) == {digest(torch.packages), digest(lock)}
    assert first.torch is not None
    with_own = without.model_copy(update={"site_packages": (first.torch,)})
    assert not packages.lacks_torch(with_own)
    assert packages.torch(home, with_own) is None


async def test_more_than_is_set_aside_is_not_even_fetched(home: Home, tmp_path: Path) -> None:
    lock, found = a_lock(tmp_path, "alpha")
    platform = Platform(found)
    with pytest.raises(NoRoom, match="sets 500 aside"):
        await ready(platform, *a_lease(home, tmp_path, lock), home, quota=500)
    assert platform.asked == []


async def test_packages_that_the_owner_deleted_are_missed_before_a_start(home: Home, tmp_path: Path) -> None:
    lock, _ = a_lock(tmp_path, "alpha")
    _, folder = a_lease(home, tmp_path, lock)
    with pytest.raises(LabApexError, match="no longer in"):
        packages.of(folder, home, config())
