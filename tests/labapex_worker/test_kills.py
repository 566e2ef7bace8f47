"""A daemon is killed at every moment that there is, and the next one goes on: nothing is lost, doubled or left behind.

The moments are not listed here. A daemon that nobody kills writes down each act that it comes to (`mortal.py`); then, for
each of them, a lease is begun anew and its daemon gets a `kill -9` just before it, another one just after it, and its
successor the same where it comes to that act again. What all these stories do must be all that a daemon can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import msgpack
import pytest
from tests.labapex.authority import Authority
from tests.labapex_worker import fake_executable, mortal, player
from tests.labapex_worker.chains import a_chain, a_fin, a_grant, a_key_request
from tests.labapex_worker.kept import keep
from tests.labapex_worker.platform_double import Gateway, Held

from labapex import sandbox
from labapex.protocol.frames import Data, Fin, Open
from labapex.protocol.packing import pack
from labapex_worker import effects, journal
from labapex_worker.config import Config, Home
from labapex_worker.identity import Identity
from labapex_worker.phases import Phase
from labapex_worker.spool import Spool
from labapex_worker.supervisor import Folder

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")

ROOT = Path(__file__).resolve().parents[2]
LENGTH, PAUSE = 6, 3  # frames; those that are made before the executable waits for the platform
DEATHS = 2  # at one moment
OF_TRIALS = {"Measure", "Decline"}  # a speed trial has no lease, and nothing of it is remembered: not told of here
NOT_TOLD_YET = {str(Phase.STOPPED)}  # a client stops the job: in `test_session_leases`, where nobody dies
READS = {"close", "spooled_bytes", "room", "leases", "lease", "frames"}  # of the spool


@dataclass(frozen=True)
class Story:
    """What happens to a lease when nobody is killed."""

    finishes: bool = True  # else its executable ends with an error
    deaf: bool = False  # the platform answers nothing of its log before its executable has ended
    unwanted: bool = False  # the platform refuses its log


STORIES = (Story(deaf=True), Story(), Story(finishes=False), Story(unwanted=True))


@dataclass
class Host:
    """A worker's host, where one daemon after the other lives, and the platform that it works for."""

    gateway: Gateway
    folder: Path
    mother: asyncio.subprocess.Process  # of the daemons
    identity: Identity
    authority: Authority
    daemon: int | None = None
    homes: list[Home] = field(default_factory=list)

    def a_home(self) -> Home:
        home = Home(Path(tempfile.mkdtemp(prefix="kill-", dir=self.folder)) / "home")
        home.create()
        shutil.copy(self.folder / "key", home.key)
        readable = (*sandbox.python_paths(), ROOT, self.folder / "scores")
        home.save(
            Config(
                platform=self.gateway.url,
                worker=self.gateway.worker,
                name="box",
                root=self.authority.public_root,
                site_packages=(),
                read_only=readable,
            )
        )
        self.homes.append(home)
        return home

    def a_job(self, story: Story) -> tuple[Held, list[Data], Fin]:
        grant = a_grant()
        chain = a_chain(grant.lease, LENGTH)
        score = {
            "open": pack(Open(lease=grant.lease)),
            "request": pack(a_key_request(grant.lease)),
            "frames": [pack(frame) for frame in chain],
            "pause": LENGTH if story.deaf else PAUSE,
            "files": _states(),
        }
        fin = a_fin(grant.lease, chain)
        if story.finishes:
            score["fin"] = pack(fin)
        written = self.folder / "scores" / grant.lease.hex
        written.write_bytes(msgpack.packb(score))
        parts = self.folder / grant.lease.hex
        parts.mkdir()
        data = fake_executable.make(
            parts,
            authority=self.authority,
            worker=self.gateway.worker,
            lease=grant.lease,
            job=grant.job,
            plan={},
            start=(sys.executable, "-I", player.__file__, written),
            release=f"1.{len(self.gateway.executables)}",  # each is a runner of its own
        )
        self.gateway.executables[grant.lease] = data
        grant = grant.model_copy(update={"size": len(data)})
        return Held(grant=grant, challenge=(0, 2), chunk=1, deaf=story.deaf, unwanted=story.unwanted), chain, fin

    async def begin(self, home: Home, moment: str = "") -> int:
        """Start a daemon that dies at this moment."""
        assert self.mother.stdin is not None
        place = home.path.parent
        order = {"home": str(home.path), "moment": moment, "trace": str(place / "trace"), "log": str(place / "log")}
        self.mother.stdin.write(json.dumps(order).encode() + b"\n")
        self.daemon = await self._answer()
        return self.daemon

    async def ended(self) -> int:
        """Wait until the daemon has ended, and tell how."""
        status = await self._answer()
        self.daemon = None
        return os.waitstatus_to_exitcode(status)

    async def _answer(self) -> int:
        assert self.mother.stdout is not None
        line = await self.mother.stdout.readline()
        assert line, "the mother of the daemons is dead"
        return int(line)

    async def tell(self, story: Story, moment: str = "") -> list[str]:
        """Live through a story, killed at this moment twice if need be; what the daemons came to."""
        home, (held, chain, fin) = self.a_home(), self.a_job(story)
        try:
            await self.gateway.offer(held)
            deaths = 0
            while True:
                await self.begin(home, moment if deaths < DEATHS else "")
                ending = asyncio.create_task(self.ended())
                living = asyncio.create_task(self._see_to(story, held, home))
                await asyncio.wait({ending, living}, return_when=asyncio.FIRST_COMPLETED)
                if not ending.done():
                    await living  # raises where it went wrong
                    assert self.daemon is not None
                    with contextlib.suppress(ProcessLookupError):  # it died of its last moment
                        os.kill(self.daemon, signal.SIGKILL)
                    await ending
                    break
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
                assert ending.result() == -signal.SIGKILL, "a daemon ended that nobody killed"
                deaths += 1
            came_to = _moments(home)
            self._compare(story, held, chain, fin, home)
            return came_to
        except BaseException:
            print(f"killed at: {moment}\n{(home.path.parent / 'log').read_text()}\n", "\n".join(_moments(home)))
            raise

    async def _see_to(self, story: Story, held: Held, home: Home) -> None:
        """Do as the platform what brings a story to its end, and wait for it."""
        lease, folder = held.grant.lease, home.lease(held.grant.lease)
        if held.deaf:
            await _until(lambda: isinstance(journal.look(folder), journal.Ended))
            held.deaf = False
        if story.finishes and not story.unwanted:
            if not story.deaf:
                await self.gateway.until(lambda: len(held.frames) >= PAUSE)
                (folder / "job" / "go").touch()
            await self.gateway.until(lambda: held.over or len(held.states) == len(held.challenge))
            if not held.over:
                await self.gateway.release(lease)
        else:
            if not story.unwanted:
                await self.gateway.until(lambda: held.over or len(held.frames) >= PAUSE)
                if folder.exists():
                    (folder / "job" / "go").touch()
            await self.gateway.until(lambda: held.over)
        await _until(lambda: not _rows(home) and not any((home.path / "jobs").iterdir()))

    def _compare(self, story: Story, held: Held, chain: list[Data], fin: Fin, home: Home) -> None:
        if story.unwanted:
            assert held.frames == []
            assert "does not open" in (held.failed or "")
        else:
            assert held.frames == chain
        if story.finishes and not story.unwanted:
            files = _states()
            assert held.fin == fin
            assert held.failed is None
            assert held.states == {index: files[f"states/{index}.safetensors"] for index in held.challenge}
            assert held.chunks
        elif not story.unwanted:
            assert held.fin is None
            assert "exit code 3: Traceback: it went wrong" in (held.failed or "")
        assert _processes(home.path.parent.name) == []


@functools.cache
def _states() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name))
        (folder.job / "states").mkdir(parents=True)
        for index in (0, 2):
            keep(folder, index)
        return {f"states/{path.name}": path.read_bytes() for path in (folder.job / "states").iterdir()}


def _moments(home: Home) -> list[str]:
    path = home.path.parent / "trace"
    return list(dict.fromkeys(path.read_text().splitlines())) if path.exists() else []


def _rows(home: Home) -> int:
    spool = Spool(home.database, quota=1 << 30, read_only=True)
    try:
        return len(spool.leases())
    finally:
        spool.close()


def _processes(name: str) -> list[str]:
    """Programs that have this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if name.encode() in line:
            found.append(line.decode(errors="replace")[:200])
    return found


async def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something on the disk."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="kills-"))
    made.chmod(0o755)
    (made / "scores").mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def host(folder: Path) -> AsyncIterator[Host]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'client_sdk'}:{ROOT / 'worker_agent'}"}
    mother = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.labapex_worker.mortal",
        env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    async with Gateway().serving() as gateway:
        authority = Authority()
        gateway.trust = authority.shown
        identity = Identity.create(folder / "key")
        gateway.public_key = identity.public_key
        made = Host(gateway, folder, mother, identity, authority)
        try:
            yield made
        finally:
            if made.daemon is not None:
                os.kill(made.daemon, signal.SIGKILL)
            mother.kill()
            await mother.wait()
            for home in made.homes:
                for lease in (home.path / "jobs").glob("*"):
                    journal.kill(lease)


async def test_a_daemon_killed_at_any_moment_loses_doubles_and_leaves_nothing(host: Host) -> None:
    killed: set[str] = set()
    missed: set[str] = set()  # what comes to be at times only, a heartbeat for instance
    effects_seen: set[str] = set()
    for story in STORIES:
        for moment in await host.tell(story):
            if moment.startswith("effect "):
                effects_seen.add(moment.removeprefix("effect "))
            elif moment not in killed:
                (killed if moment in await host.tell(story, moment) else missed).add(moment)
    assert len(missed - killed) <= len(killed) // 20, missed - killed
    assert effects_seen | OF_TRIALS == {each.__name__ for each in get_args(effects.Effect)}
    assert {moment.split(":")[0] for moment in killed} == {*map(str, Phase), "no lease"} - NOT_TOLD_YET
    assert {f"spool.{name}" for name in mortal.CHANGES} <= {moment.split(": ")[1] for moment in killed}


def test_whatever_changes_the_spool_is_one_of_the_moments() -> None:
    public = {name for name in vars(Spool) if not name.startswith("_")}
    assert public == {*READS, *mortal.CHANGES, "add", "move", "keep_release"}, "add it to mortal.CHANGES"
