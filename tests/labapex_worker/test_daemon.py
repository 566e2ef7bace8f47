"""A real daemon process against a gateway on this machine: real socket, real SQLite, real sandbox, real kill -9."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from tests.labapex_worker import fake_executable
from tests.labapex_worker.platform_double import Gateway, Held

from labapex import executable, sandbox, sealing
from labapex.protocol.frames import Grant
from labapex.protocol.records import uncolumn
from labapex_worker import journal
from labapex_worker.config import Home
from labapex_worker.spool import Spool

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home() -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="lw-"))
    made = Home(folder / ("a path that is too long for a socket " * 3))
    yield made
    for lease in (made.path / "jobs").glob("*"):
        journal.kill(lease)
    shutil.rmtree(folder)


class Cast:
    """A gateway, and the worker of one host."""

    def __init__(self, gateway: Gateway, home: Home, folder: Path) -> None:
        self.gateway, self.home, self.folder = gateway, home, folder
        self.signing_key, gateway.manifest_key = sealing.new_signing_keys()
        self.processes: list[asyncio.subprocess.Process] = []

    async def labapex_worker(self, *arguments: str) -> asyncio.subprocess.Process:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT / 'client_sdk'}:{ROOT / 'worker_agent'}",
            "LABAPEX_WORKER_HOME": str(self.home.path),
            "TERM": "dumb",
            "COLUMNS": "200",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "labapex_worker.cli", *arguments,
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        return process

    async def said(self, *arguments: str) -> tuple[int | None, str, str]:
        process = await self.labapex_worker(*arguments)
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def enrol(self) -> None:
        readable = [part for path in (*sandbox.python_paths(), ROOT) for part in ("--read-only", str(path))]
        code, _, err = await self.said("enrol", "good", "--platform", self.gateway.url, "--name", "box", *readable)
        assert code == 0, err

    def a_job(self, *, challenge: tuple[int, ...] = (), altered: bool = False, **plan: object) -> Held:
        lease, job = uuid4(), uuid4()
        parts = self.folder / lease.hex
        parts.mkdir()
        data = fake_executable.make(
            parts, signing_key=self.signing_key, worker=self.gateway.worker, lease=lease, job=job, plan=plan
        )
        if altered:
            data = data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
        grant = Grant(lease=lease, job=job, name="digits", token=f"token-{lease}", size=len(data), threads=1)
        whole = parts / "whole"
        whole.write_bytes(data)
        held = Held(grant=grant, challenge=challenge)
        if not altered:
            held.manifest = executable.inspect(whole).manifest
        self.gateway.executables[lease] = data
        return held

    def losses(self, held: Held) -> list[float]:
        return [loss for frame in held.frames for loss in uncolumn(sealing.open_frame(held.run_key, frame).losses)]

    async def ended(self, process: asyncio.subprocess.Process, seconds: float = 60) -> str:
        async with asyncio.timeout(seconds):
            _, err = await process.communicate()
        return err.decode()


@pytest.fixture
async def cast(home: Home, tmp_path: Path) -> AsyncIterator[Cast]:
    async with Gateway().serving() as gateway:
        made = Cast(gateway, home, tmp_path)
        try:
            yield made
        finally:
            for process in made.processes:
                if process.returncode is None:
                    process.kill()
                    await process.communicate()


def rows(home: Home) -> list[UUID]:
    spool = Spool(home.database, quota=1 << 30, read_only=True)
    try:
        return [lease.id for lease in spool.leases()]
    finally:
        spool.close()


async def test_a_job_runs_from_grant_to_release_and_leaves_nothing_behind(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=20, states=3, challenge=(0, 2))
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.states) == 2)
    code, shown, _ = await cast.said("status")
    assert code == 0
    assert "digits" in shown
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    assert worker.returncode == 0, err
    assert cast.losses(held) == [float(n) for n in range(40)]
    assert held.fin is not None
    assert held.states == {0: b"state 0 " * 1000, 2: b"state 2 " * 1000}
    assert list((cast.home.path / "jobs").iterdir()) == []
    assert rows(cast.home) == []
    assert held.grant.token not in err


async def test_a_worker_that_is_to_end_after_one_job_begins_no_other_while_it_waits_for_the_verdict(cast: Cast) -> None:
    await cast.enrol()
    held, other = cast.a_job(frames=2, states=1, challenge=(0,)), cast.a_job(frames=2)
    await cast.gateway.offer(held)
    await cast.gateway.offer(other)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.states)
    assert cast.gateway.books.waiting == [other]
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.gateway.books.waiting == [other]


async def test_a_daemon_killed_in_the_middle_of_a_job_is_followed_by_one_that_goes_on(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=30, wait_at=12, states=1, challenge=(0,))
    await cast.gateway.offer(held)
    first = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 12)
    first.kill()
    await first.communicate()
    assert isinstance(journal.look(cast.home.lease(held.grant.lease)), journal.Alive), "the job outlives the daemon"
    second = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.states)
    await cast.gateway.release(held.grant.lease)
    assert "still runs" in await cast.ended(second)
    assert cast.losses(held) == [float(n) for n in range(60)]
    assert second.returncode == 0


async def test_a_daemon_killed_again_and_again_loses_and_doubles_nothing(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=400)
    await cast.gateway.offer(held)
    for reached in (1, 40, 150, 300):
        worker = await cast.labapex_worker("run", "--once")
        await cast.gateway.until(lambda goal=reached: len(held.frames) >= goal or held.fin)  # type: ignore[misc]
        worker.kill()
        await worker.communicate()
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.losses(held) == [float(n) for n in range(800)]


async def test_a_daemon_that_is_told_to_stop_leaves_the_job_running_for_the_next(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=10, wait_at=5)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    worker.send_signal(signal.SIGTERM)
    err = await cast.ended(worker)
    assert worker.returncode == 0, err
    assert isinstance(journal.look(cast.home.lease(held.grant.lease)), journal.Alive)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.losses(held) == [float(n) for n in range(20)]


async def test_cut_connections_cost_nothing(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=300)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    for reached in (1, 100):
        await cast.gateway.until(lambda goal=reached: len(held.frames) >= goal or held.fin)  # type: ignore[misc]
        await cast.gateway.cut()
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.until(lambda: cast.gateway.connections >= 2)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.losses(held) == [float(n) for n in range(600)]


async def test_a_download_that_breaks_off_goes_on_where_it_stopped(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1)
    cast.gateway.cut_download_at = 8192
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.gateway.ranges[0] is None
    assert cast.gateway.ranges[1] is not None


async def test_an_altered_executable_is_not_started(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1, altered=True)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    await cast.ended(worker)
    assert held.failed is not None
    assert "not what the platform signed" in held.failed
    assert held.key_request is None


async def test_an_executable_that_fails_is_reported_after_its_log_with_its_last_words(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=3, exit=3)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    await cast.ended(worker)
    assert held.failed is not None
    assert "exit code 3: Traceback: it went wrong" in held.failed
    assert cast.losses(held) == [float(n) for n in range(6)]


async def test_a_job_that_is_released_while_it_runs_is_killed_and_deleted(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=10, wait_at=5)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    assert worker.returncode == 0, err
    assert list((cast.home.path / "jobs").iterdir()) == []


async def test_a_state_that_is_a_link_to_a_file_of_the_host_is_not_handed_out(cast: Cast, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's own")
    await cast.enrol()
    held = cast.a_job(frames=1, states=2, challenge=(0, 1), link=secret)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.states)
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    assert held.states == {1: b"state 1 " * 1000}
    assert "state 0 cannot be read" in err


async def test_two_daemons_cannot_share_a_home(cast: Cast) -> None:
    await cast.enrol()
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.connections)
    code, _, err = await cast.said("run")
    assert code == 2
    assert "another daemon" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("enrol", "bad", "--platform", "{url}"), 2, "this code is not valid"),
        (("enrol", "good", "--platform", "http://apex.example.org"), 2, "not encrypted"),
        (("enrol", "good", "--platform", "apex"), 2, "no address"),
        (("enrol", "good", "--platform", "http://127.0.0.1:9"), 6, "no answer"),
        (("run",), 2, "no worker is enrolled"),
        (("status",), 2, "no worker is enrolled"),
    ],
)
async def test_what_goes_wrong_is_one_line_and_an_exit_code(
    cast: Cast, arguments: tuple[str, ...], code: int, words: str
) -> None:
    got, _, err = await cast.said(*(part.replace("{url}", cast.gateway.url) for part in arguments))
    assert got == code
    assert words in err
    assert "Traceback" not in err


async def test_check_says_what_is_there_and_inspect_reads_a_file_without_starting_it(cast: Cast) -> None:
    code, out, _ = await cast.said("check")
    assert code == 1
    assert "no worker is enrolled" in out
    await cast.enrol()
    code, out, _ = await cast.said("check")
    assert "bubblewrap works" in out
    held = cast.a_job(frames=1)
    code, out, _ = await cast.said("inspect", str(cast.folder / held.grant.lease.hex / "whole"))
    assert code == 0
    assert str(held.grant.lease) in out


async def test_the_key_is_made_on_the_host_and_closed_to_others(cast: Cast) -> None:
    await cast.enrol()
    assert cast.home.key.stat().st_mode & 0o077 == 0
    assert cast.home.config.stat().st_mode & 0o077 == 0
    assert cast.home.path.stat().st_mode & 0o077 == 0
    cast.home.key.chmod(0o644)
    code, _, err = await cast.said("run")
    assert code == 2
    assert "chmod 600" in err
