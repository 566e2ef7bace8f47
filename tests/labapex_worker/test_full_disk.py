"""A real disk without room: a file system in memory of our own, made smaller and larger while it is in use."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.labapex_worker.cast import Cast, rows
from tests.labapex_worker.chains import a_chain, a_grant

from labapex import sandbox, watch
from labapex_worker import journal, transfers
from labapex_worker.config import Home
from labapex_worker.phases import Phase
from labapex_worker.spool import LEFT_BYTES, DiskFull, Spool, Taken

MIB = 1 << 20


def _mount(*arguments: str) -> str | None:
    """None, or why it cannot be done."""
    if os.geteuid() != 0:
        return "only root can mount a small disk"
    done = subprocess.run(["mount", "-t", "tmpfs", *arguments], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else None


class Disk:
    """Its size is a number: nothing has to be written to fill it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, free: int) -> None:
        """So many bytes are free from now on, rounded up to pages."""
        refused: str | None = None
        for _ in range(20):  # what is written in between makes it too small to be accepted
            space = os.statvfs(self.path)
            used = (space.f_blocks - space.f_bfree) * space.f_frsize
            refused = _mount("-o", f"remount,size={used + free}", "labapex-test", str(self.path))
            if refused is None:
                return
        raise AssertionError(refused)


@pytest.fixture
def disk() -> Iterator[Disk]:
    path = Path(tempfile.mkdtemp(prefix="lw-disk-"))
    if (refused := _mount("-o", "size=4g,mode=755", "labapex-test", str(path))) is not None:
        path.rmdir()
        pytest.skip(f"no disk of our own: {refused}")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)
    path.rmdir()


# -- the spool ---------------------------------------------------------------------------------------------------------


def test_frames_leave_the_last_of_a_disk_to_what_is_decided(disk: Disk) -> None:
    spool = Spool(disk.path / "s", quota=1 << 30)
    grant = a_grant()
    spool.add(grant)
    chain = a_chain(grant.lease, 2)
    assert spool.append(chain[0]) is Taken.APPENDED
    disk.resize(LEFT_BYTES - MIB)
    assert spool.append(chain[1]) is Taken.FULL
    spool.move(grant.lease, Phase.FAILED, "its disk is full")
    disk.resize(LEFT_BYTES + MIB)
    assert spool.append(chain[1]) is Taken.APPENDED
    spool.close()


def test_what_cannot_be_written_changes_nothing_and_can_be_written_later(disk: Disk) -> None:
    spool = Spool(disk.path / "s", quota=1 << 30)
    grant = a_grant()
    spool.add(grant)
    disk.resize(0)
    with pytest.raises(DiskFull, match="0 MiB are free"):
        spool.move(grant.lease, Phase.FAILED, "y" * 2000)
    (held,) = spool.leases()
    assert held.phase is Phase.GRANTED
    disk.resize(MIB)
    spool.move(grant.lease, Phase.FAILED, "y" * 2000)
    assert spool.append(a_chain(grant.lease, 1)[0]) is Taken.FULL
    spool.close()


# -- the daemon --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(disk: Disk) -> Iterator[Home]:
    made = Home(disk.path / "home")
    yield made
    for lease in (made.path / "jobs").glob("*"):
        journal.kill(lease)


needs_sandbox = pytest.mark.skipif(sandbox.available() is not None, reason=f"no sandbox: {sandbox.available()}")


@needs_sandbox
async def test_a_worker_without_room_asks_for_no_work_until_there_is_some(cast: Cast, disk: Disk) -> None:
    await cast.enrol()
    disk.resize(transfers.SPARE_BYTES // 2)
    held = cast.a_job(frames=2)
    cast.gateway.books.waiting.append(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: cast.gateway.books.heartbeats)
    assert cast.gateway.books.ready == 0
    assert cast.gateway.books.waiting == [held]
    disk.resize(2 * transfers.SPARE_BYTES)
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    assert "its disk has less than 1024 MiB free" in await cast.ended(worker)


@needs_sandbox
async def test_an_executable_for_which_there_is_no_room_is_handed_back_once_with_the_reason(
    cast: Cast, disk: Disk
) -> None:
    await cast.enrol()
    disk.resize(2 * transfers.SPARE_BYTES)
    large, small = cast.a_job(frames=2), cast.a_job(frames=2)
    large.grant = large.grant.model_copy(update={"size": 3 * transfers.SPARE_BYTES})
    cast.gateway.books.waiting += [large, small]
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: large.failed)
    assert large.failed is not None
    assert "bytes are free on this worker's disk; 4294967296 are needed" in large.failed
    before = len(cast.gateway.books.heartbeats)
    await cast.gateway.until(lambda: len(cast.gateway.books.heartbeats) > before)
    assert cast.gateway.books.waiting == [small], "it would get the same job again"
    disk.resize(5 * transfers.SPARE_BYTES)
    await cast.gateway.until(lambda: small.fin)
    worker.kill()
    await worker.communicate()


@needs_sandbox
async def test_a_job_whose_disk_runs_full_ends_with_the_cause_and_the_next_one_runs_when_there_is_room(
    cast: Cast, disk: Disk
) -> None:
    await cast.enrol()
    held, other = cast.a_job(frames=10, wait_at=5), cast.a_job(frames=2)
    cast.gateway.books.waiting += [held, other]
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    disk.resize(watch.FREE_BYTES // 2)
    await cast.gateway.until(lambda: held.failed)
    assert held.failed is not None
    assert "free on the disk of its folder" in held.failed
    assert cast.losses(held) == [float(n) for n in range(10)]
    assert cast.gateway.books.waiting == [other]
    disk.resize(2 * transfers.SPARE_BYTES)
    await cast.gateway.until(lambda: other.fin)
    worker.kill()
    await worker.communicate()


@needs_sandbox
async def test_a_daemon_whose_disk_takes_nothing_at_all_lives_and_goes_on_when_it_does(cast: Cast, disk: Disk) -> None:
    await cast.enrol()
    held, other = cast.a_job(frames=10, wait_at=5), cast.a_job(frames=2)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    disk.resize(0)
    cast.gateway.books.waiting.append(other)
    await cast.gateway.release(held.grant.lease)  # which cannot be remembered
    await cast.logs(worker, "has no room: 0 MiB are free")
    disk.resize(2 * transfers.SPARE_BYTES)
    await cast.gateway.until(lambda: other.fin)
    assert rows(cast.home) == [other.grant.lease]
    worker.send_signal(signal.SIGTERM)
    await cast.ended(worker)
    assert worker.returncode == 0
