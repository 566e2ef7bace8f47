"""The worker's program: carries out what the agent decides, until it is told to stop.

Executables are no children of the daemon in any way that matters: they live in sessions of their own behind a keeper
(journal.py), hold their frames until the daemon has them on disk, and knock at their door (`agent.sock`) until someone
answers. So the daemon can be stopped, killed and upgraded at any moment; the next one looks around and goes on.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from labapex.errors import LabApexError, UsageError
from labapex_worker import devices, effects, journal, supervisor, transfers
from labapex_worker.agent import Agent, Errand, ToExecutable, ToPlatform
from labapex_worker.config import Home
from labapex_worker.connection import Connection
from labapex_worker.identity import Identity
from labapex_worker.phases import Phase
from labapex_worker.spool import Lease, Spool
from labapex_worker.supervisor import Door, Folder

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25


class Daemon:
    """One worker. `once`: end after one lease is over."""

    def __init__(self, home: Home, *, slots: int = 1, once: bool = False) -> None:
        self._home, self._once = home, once
        self._config = home.load()
        self._identity = Identity.load(home.key)
        self._devices = tuple(str(device) for device in devices.find())
        self._spool = Spool(home.database, quota=self._config.spool_bytes)
        self._agent = Agent(self._spool, slots=1 if once else slots)
        self._connection = Connection(
            self._config.platform,
            opened=lambda: self._do(self._agent.connected()),
            received=lambda data: self._do(self._agent.from_platform(data, time.monotonic())),
            closed=lambda: self._do(self._agent.disconnected()),
        )
        self._http = transfers.client(self._config)
        self._doors: dict[UUID, Door] = {}
        self._watched: dict[
            UUID, object
        ] = {}  # lease -> its Popen where this daemon started it, which has to be reaped
        self._uploads: dict[UUID, tuple[asyncio.Task[None], set[int]]] = {}
        self._tasks: dict[asyncio.Task[None], UUID | None] = {}
        self._stop = asyncio.Event()
        self._broken: BaseException | None = None

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, or with `once` until a lease is over. Raises what made going on impossible."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        log.info("worker %s (%s) on %s", self._config.worker, self._config.name, "; ".join(self._devices))
        await self._look_around()
        if self._spool.leases():
            self._no_more_if_once()
        self._do(self._agent.restored())
        self._spawn(self._connection.run(), None)
        self._spawn(self._watch(), None)
        try:
            await self._stop.wait()
        finally:
            log.info("stopping; what runs goes on without the daemon")
            self._agent.session.drain()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for door in self._doors.values():
                await door.close()
            await self._http.aclose()
            self._spool.close()
        if self._broken is not None:
            raise self._broken

    # -- going on after another daemon ---------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        leases = self._spool.leases()
        known = {self._home.lease(lease.id) for lease in leases}
        for path in (self._home.path / "jobs").iterdir():
            if path not in known:
                log.warning("deleting %s, which belongs to no lease", path)
                journal.kill(path)
                try:
                    Folder(path).remove()
                except OSError as error:
                    log.error("%s", error)
        for lease in leases:
            if lease.phase in (Phase.GRANTED, Phase.RELEASED):
                continue
            match journal.look(self._home.lease(lease.id)):
                case journal.Alive():
                    log.info("lease %s: still runs", lease.id)
                    await self._open_door(lease.id)
                    self._watched[lease.id] = None
                    self._do(self._agent.started(lease.id))
                case journal.NeverStarted() if lease.phase is Phase.STARTING:
                    self._spawn(self._start(lease), lease.id)
                case journal.Ended() as ended:
                    self._do(self._agent.exited(lease.id, self._how(lease.id, ended)))
                case journal.NeverStarted():
                    self._do(self._agent.exited(lease.id, "its files are gone"))

    # -- errands -------------------------------------------------------------------------------------------------------

    def _do(self, errands: list[Errand]) -> None:
        for errand in errands:
            match errand:
                case ToPlatform(message):
                    self._connection.send(message)
                case ToExecutable(lease, told):
                    if (door := self._doors.get(lease)) is not None:
                        door.send(told)
                case effects.SayHello(nonce, leases):
                    self._connection.send(self._identity.hello(self._config.worker, nonce, self._devices, leases))
                case effects.Fetch(lease):
                    self._no_more_if_once()
                    self._spawn(self._fetch(self._row(lease)), lease)
                case effects.Start(lease):
                    self._spawn(self._start(self._row(lease)), lease)
                case effects.Kill(lease):
                    self._spawn(self._kill(lease), lease)
                case effects.Upload(lease, indices, deadline):
                    self._upload(lease, indices, deadline)
                case effects.Discard(lease, reason):
                    self._discard(lease, reason)
                case effects.HangUp(reason):
                    self._connection.hang_up(reason)

    async def _fetch(self, lease: Lease) -> None:
        log.info(
            "lease %s: fetching job %s '%s', %d bytes", lease.id, lease.grant.job, lease.grant.name, lease.grant.size
        )
        try:
            await transfers.fetch(self._http, lease.grant, Folder(self._home.lease(lease.id)), self._config)
        except (LabApexError, OSError) as error:
            self._do(self._agent.failed(lease.id, f"the executable could not be fetched: {error}"))
        else:
            self._do(self._agent.fetched(lease.id))

    async def _start(self, lease: Lease) -> None:
        try:
            await self._open_door(lease.id)
            # In this thread: the sandbox dies with the thread that started it, were it not for the keeper in between.
            process = supervisor.start(lease.id, self._home, self._config, threads=lease.grant.threads)
        except (LabApexError, OSError) as error:
            self._do(self._agent.failed(lease.id, f"the executable could not be started: {error}"))
            return
        self._watched[lease.id] = process
        self._do(self._agent.started(lease.id))

    async def _kill(self, lease: UUID) -> None:
        await asyncio.to_thread(journal.kill, self._home.lease(lease))

    def _upload(self, lease: UUID, indices: tuple[int, ...], deadline: float) -> None:
        """One state after the other; a challenge that is repeated starts nothing anew."""
        running = self._uploads.get(lease)
        if running is not None and not running[0].done() and running[1] == set(indices):
            return
        if running is not None:
            running[0].cancel()
        task = self._spawn(self._upload_all(self._row(lease), indices, deadline), lease)
        self._uploads[lease] = (task, set(indices))

    async def _upload_all(self, lease: Lease, indices: tuple[int, ...], deadline: float) -> None:
        log.info("lease %s: the platform asks for %d states", lease.id, len(indices))
        folder = Folder(self._home.lease(lease.id))
        handed_in = 0
        for index in dict.fromkeys(indices):
            try:
                await transfers.upload(self._http, lease.grant, folder, index, deadline)
                handed_in += 1
            except LabApexError as error:
                log.error("lease %s: %s", lease.id, error)
        log.info("lease %s: %d of %d states handed in", lease.id, handed_in, len(set(indices)))

    def _discard(self, lease: UUID, reason: str) -> None:
        log.info("lease %s: over (%s)", lease, reason)
        for task, owner in list(self._tasks.items()):
            if owner == lease:
                task.cancel()
        self._spawn(self._remove(lease), None)

    async def _remove(self, lease: UUID) -> None:
        if (door := self._doors.pop(lease, None)) is not None:
            await door.close()
        folder = Folder(self._home.lease(lease))
        await asyncio.to_thread(journal.kill, folder.path)
        self._reap(lease)
        try:
            await asyncio.to_thread(folder.remove)
        except OSError as error:  # the next daemon tries again
            log.error("lease %s: %s", lease, error)
        self._uploads.pop(lease, None)
        self._do(self._agent.discarded(lease))
        log.info("lease %s: deleted", lease)
        if self._once:
            self._stop.set()

    def _no_more_if_once(self) -> None:
        """A job is done when its lease is over, long after its slot is free: no other may be begun meanwhile."""
        if self._once:
            self._agent.session.drain()

    # -- processes -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            self._do(self._agent.tick(time.monotonic()))
            for lease in list(self._watched):
                if isinstance(ended := journal.look(self._home.lease(lease)), journal.Ended):
                    self._reap(lease)
                    log.info("lease %s: the executable ended, %s", lease, ended)
                    self._do(self._agent.exited(lease, self._how(lease, ended)))
            await asyncio.sleep(TICK_SECONDS)

    def _reap(self, lease: UUID) -> None:
        process: Any = self._watched.pop(lease, None)
        if process is not None:
            process.poll()

    def _how(self, lease: UUID, ended: journal.Ended) -> str:
        words = journal.last_words(self._home.lease(lease))
        return f"{ended}: {words}" if words and ended.code != 0 else str(ended)

    async def _open_door(self, lease: UUID) -> None:
        folder = Folder(self._home.lease(lease))
        folder.create()
        door = Door(
            folder.socket,
            may_speak=lambda pid: self._agent.may_speak(lease, pid),
            hear=lambda data, pid: self._do(self._agent.from_executable(lease, data, pid)),
            broken=lambda reason: self._do(self._agent.failed(lease, reason)),
        )
        await door.open()
        self._doors[lease] = door

    # ------------------------------------------------------------------------------------------------------------------

    def _row(self, lease: UUID) -> Lease:
        if (row := self._spool.lease(lease)) is None:
            raise RuntimeError(f"lease {lease} was given up while work for it was handed out")
        return row

    def _spawn(self, work: Coroutine[Any, Any, None], lease: UUID | None) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks[task] = lease
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = error  # a fault of ours: better to stop and start anew from what is on disk
            self._stop.set()


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Two daemons must not share a folder."""
    with home.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another daemon works in {home.path}; stop it, or choose another --home") from None
        yield


def run(home: Home, *, slots: int, once: bool) -> None:
    """Run a worker until it is told to stop."""

    async def main() -> None:
        await Daemon(home, slots=slots, once=once).run()

    home.create()
    with only_one(home):
        asyncio.run(main())
