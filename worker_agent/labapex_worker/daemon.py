"""The worker's program: carries out what the agent decides, until it is told to stop.

Executables are no children of the daemon in any way that matters: they live in sessions of their own behind a keeper
(journal.py), hold their frames until the daemon has them on disk, and knock at their door (`agent.sock`) until someone
answers. So the daemon can be stopped, killed and upgraded at any moment; the next one looks around and goes on. Where it
cannot write what it has to remember it does the same to itself: it begins anew, until there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from labapex import nvml
from labapex.errors import LabApexError, MalformedInput, UsageError
from labapex.protocol.frames import TrialReady
from labapex_worker import (
    devices,
    effects,
    journal,
    limits,
    logs,
    metrics,
    packages,
    readings,
    releases,
    supervisor,
    transfers,
    wishes,
)
from labapex_worker.agent import Agent, Errand, ToExecutable, ToPlatform
from labapex_worker.config import Home
from labapex_worker.connection import Connection
from labapex_worker.control import Control, Question
from labapex_worker.identity import Identity
from labapex_worker.limits import Go, Patience, Pause, Readings
from labapex_worker.phases import Phase
from labapex_worker.releases import Shelf
from labapex_worker.showing import Showing
from labapex_worker.spool import DiskFull, Lease, Spool
from labapex_worker.status import Status, of_leases
from labapex_worker.supervisor import Door, Folder
from labapex_worker.trial import Trials
from labapex_worker.trust import Keeper
from labapex_worker.wishes import Wish

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LIMITS_SECONDS = 5.0  # how often the host is held against its owner's limits
OBSERVE_SECONDS = 1.0
FULL_SECONDS = 2.0  # between two tries to go on with a disk that is full
TRUST_SECONDS = 3600.0  # after which the platform is asked again whose signatures count
DISTRUST_SECONDS = 30.0  # likewise, while nothing of the platform could be started


class Daemon:
    """One worker. `once`: end after one lease is over."""

    def __init__(self, home: Home, *, slots: int = 1, once: bool = False) -> None:
        self._home, self._once = home, once
        self._config = home.load()
        self._identity = Identity.load(home.key)
        self._keeper = Keeper(home, self._config)
        self._shelf = Shelf(home)
        self._next: str | None = None  # version of the agent that waits for the last job to end
        self._devices = devices.find()
        self._spool = Spool(home.database, quota=self._config.spool_bytes)
        self._agent = Agent(self._spool, slots=1 if once else slots)
        self._connection = Connection(
            self._config.platform,
            opened=self._opened,
            received=lambda data: self._do(self._agent.from_platform(data, time.monotonic())),
            closed=self._closed,
            longest_pause=lambda: self._agent.session.longest_pause,
        )
        self._http = transfers.client(self._config)
        self._showing = Showing(self._http, home, lambda: self._config, lambda *why: self._do(self._agent.failed(*why)))
        self._doors: dict[UUID, Door] = {}
        self._watched: dict[
            UUID, object
        ] = {}  # lease -> its Popen where this daemon started it, which has to be reaped
        self._uploads: dict[UUID, tuple[asyncio.Task[None], Errand]] = {}
        self._tasks: dict[asyncio.Task[None], UUID | None] = {}
        self._control = Control(home.control, self._answer)
        self._page = metrics.Page(self._status)
        self._trouble = logs.LastTrouble()
        self._connected_since: float | None = None
        self._wish, self._last_job = wishes.read(home.wish), False
        self._readings, self._patience = Readings(), Patience()
        self._room_bytes = transfers.SPARE_BYTES  # without so much of the disk no work is asked for
        self._trials = Trials(home.path / "trial", self._connection.send)
        self._stop = asyncio.Event()
        self._news_of_trust = asyncio.Event()
        self._restart = False
        self._broken: BaseException | None = None

    async def run(self) -> bool:
        """Until SIGTERM or SIGINT, or with `once` until a lease is over. True: until a newer version of it is in place.

        Raises what made going on impossible."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        logging.getLogger().addHandler(self._trouble)
        log.info("worker %s (%s) on %s", self._config.worker, self._config.name, "; ".join(map(str, self._devices)))
        try:
            await self._look_around()
            if self._spool.leases():
                self._no_more_if_once()
            await self._heed_owner()  # before the platform hears that work is wanted
            self._do(self._agent.restored())
            await self._control.open()
            self._shelf.came_up()
            await self._page.listen(self._config.limits.metrics_port)
            self._spawn(self._connection.run(), None)
            self._spawn(self._watch(), None)
            self._spawn(self._watch_limits(), None)
            self._spawn(self._observe(), None)
            self._spawn(self._believe(), None)
            await self._stop.wait()
        finally:
            log.info("stopping; what runs goes on without the daemon")
            self._agent.session.hold("it stops")
            await self._control.close()
            await self._page.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for door in self._doors.values():
                await door.close()
            await self._http.aclose()
            self._spool.close()
            logging.getLogger().removeHandler(self._trouble)
        if self._broken is not None:
            raise self._broken
        return self._restart

    # -- whose signatures count ----------------------------------------------------------------------------------------

    async def _believe(self) -> None:
        """Learn what the platform's keys are, and what it releases: with each connection, and now and then."""
        while True:
            self._news_of_trust.clear()
            await self._keeper.refresh(self._http)
            await self._update()
            await self._heed_owner()
            pause = TRUST_SECONDS if self._keeper.problem(time.time()) is None else DISTRUST_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news_of_trust.wait()

    async def _update(self) -> None:
        """Have a newer version of the agent beside this one. It takes over once no job is here (`_heed_owner`)."""
        if self._once or self._next is not None or not self._config.updates:
            return
        try:
            offered = await releases.look(self._http)
            if offered is None:
                return
            release = self._keeper.trust.release(offered, "agent", time.time())
            if not releases.wanted(release, self._shelf):
                return
            await releases.fetch(self._http, release, self._shelf)
            self._keeper.saw(offered)
        except (LabApexError, OSError) as error:
            log.error("no update of the agent: %s", error)
        else:
            self._next = release.version

    # -- going on after another daemon ---------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        await asyncio.to_thread(packages.store(self._home, self._config).sweep)
        leases = self._spool.leases()
        logs.JOBS.update({lease.id: lease.grant.job for lease in leases})
        known = {self._home.lease(lease.id) for lease in leases}
        for path in (self._home.path / "jobs").iterdir():
            if path not in known:
                log.warning("deleting %s, which belongs to no lease", path)
                _kill(Folder(path))
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
                    self._do(self._agent.exited(lease.id, journal.how(self._home.lease(lease.id), ended)))
                case journal.NeverStarted():
                    self._do(self._agent.exited(lease.id, "its files are gone"))

    # -- the owner -----------------------------------------------------------------------------------------------------

    async def _answer(self, question: Question) -> Status:
        """One command of the owner's."""
        if question.what == "reload":
            self._config, self._wish = self._home.load(), wishes.read(self._home.wish)
            log.info("the owner's settings were read again")
            await self._heed_owner()
            await self._page.listen(self._config.limits.metrics_port)
        return self._status()

    async def _watch_limits(self) -> None:
        while True:
            await self._heed_owner()
            await asyncio.sleep(LIMITS_SECONDS)

    async def _heed_owner(self) -> None:
        """Look at the host, and take work, take none, or give it back, as its owner wants it."""
        self._readings = await asyncio.to_thread(readings.read, self._devices, self._processes())
        decision = self._decide()
        self._heed(decision)
        if self._patience.ran_out(decision, time.monotonic()) and isinstance(decision, Pause):
            self._do(self._agent.give_back(f"the owner of the host took it back: {decision.reason}"))
        if self._next is not None and not self._spool.leases():
            self._shelf.switch(self._next)
            self._restart = True
            self._stop.set()
        if self._wish is Wish.DRAIN and not self._spool.leases():
            log.info("it has run empty, as its owner wanted")
            wishes.write(self._home.wish, Wish.WORK)  # the next `run` works again
            self._stop.set()

    def _heed(self, decision: Go | Pause) -> None:
        if isinstance(decision, Pause):
            if decision.reason != self._agent.session.held:
                log.info("no new work is taken: %s", decision.reason)
            self._do(self._agent.hold(decision.reason))
        else:
            if self._agent.session.held is not None:
                log.info("work is taken again")
            self._do(self._agent.go(self._config.limits.price_per_hour))

    def _decide(self) -> Go | Pause:
        ends = "it ends after this job" if self._last_job else None
        update = f"version {self._next} of the agent takes over after the last job" if self._next else None
        reasons = [self._wish.reason, ends, self._keeper.problem(time.time()), update]
        if shutil.disk_usage(self._home.path).free < self._room_bytes:
            reasons.append(f"its disk has less than {self._room_bytes >> 20} MiB free")
        pauses = [Pause(reason) for reason in reasons if reason is not None]
        allowed = limits.decide(self._config.limits, self._readings, datetime.now())
        return limits.together([*pauses, allowed] if isinstance(allowed, Pause) else pauses)

    def _processes(self) -> list[int]:
        """The processes that lead what runs here of jobs."""
        folders = [Folder(self._home.lease(lease.id)) for lease in self._spool.leases()]
        looks = [journal.look(each.path) for folder in folders for each in (folder, folder.again)]
        return [look.pid for look in looks if isinstance(look, journal.Alive) and look.pid is not None]

    def _status(self) -> Status:
        return Status(
            worker=self._config.worker,
            name=self._config.name,
            platform=self._config.platform,
            pid=os.getpid(),
            connected_since=self._connected_since,
            wish=self._wish,
            held=self._agent.session.held,
            devices=tuple(map(str, self._devices)),
            power_watts=self._readings.power_watts,
            temperature=self._readings.temperature,
            limits=self._config.limits,
            leases=of_leases(self._home, self._spool.leases()),
            spool_bytes=self._spool.spooled_bytes,
            spool_limit=self._config.spool_bytes,
            disk_free=shutil.disk_usage(self._home.path).free,
            disk_limit=self._config.disk_bytes,
            trouble=self._trouble.last,
        )

    def _opened(self) -> None:
        self._connected_since = time.time()
        self._do(self._agent.connected())
        self._news_of_trust.set()

    def _closed(self) -> None:
        self._connected_since = None
        self._trials.end()
        self._do(self._agent.disconnected())

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
                    self._devices = devices.find()  # a GPU may have gone or come since
                    self._connection.send(self._identity.hello(self._config.worker, nonce, self._devices, leases))
                case effects.Fetch(lease):
                    self._no_more_if_once()
                    row = self._row(lease)
                    logs.JOBS[lease] = row.grant.job
                    self._spawn(self._fetch(row), lease)
                case effects.Start(lease):
                    self._spawn(self._start(self._row(lease)), lease)
                case effects.Kill(lease):
                    self._spawn(self._kill(lease), lease)
                case effects.UploadChunks(lease):
                    self._upload(lease, errand, self._showing.chunks(self._row(lease), errand))
                case effects.Upload(lease):
                    self._upload(lease, errand, self._showing.states(self._row(lease), errand))
                case effects.Discard(lease, reason):
                    self._discard(lease, reason)
                case effects.Measure(asked):
                    if (work := self._trials.heed(asked, self._config)) is not None:
                        self._spawn(work, None)
                case effects.Decline(trial, reason):
                    self._connection.send(TrialReady(trial=trial, problem=reason))
                case effects.HangUp(reason):
                    self._connection.hang_up(reason)

    async def _fetch(self, lease: Lease) -> None:
        log.info(
            "lease %s: fetching job %s '%s', %d bytes", lease.id, lease.grant.job, lease.grant.name, lease.grant.size
        )
        try:
            folder = Folder(self._home.lease(lease.id))
            await transfers.fetch(self._http, lease.grant, folder, self._config, self._keeper)
        except (LabApexError, OSError) as error:
            self._mind_room(error)
            self._do(self._agent.failed(lease.id, f"the executable could not be fetched: {error}"))
            return
        try:
            await packages.prepare(self._http, lease.grant, folder, self._home, self._config)
        except (LabApexError, OSError) as error:
            self._mind_room(error)
            self._do(self._agent.failed(lease.id, f"the job's packages could not be made ready: {error}"))
        else:
            self._do(self._agent.fetched(lease.id))

    def _mind_room(self, error: Exception) -> None:
        """Ask for no work before there is the room that was missing: it would be the same job again."""
        if isinstance(error, transfers.NoRoom):
            self._room_bytes = error.needed
            self._heed(self._decide())

    async def _start(self, lease: Lease) -> None:
        try:
            await asyncio.to_thread(self._keeper.admit, Folder(self._home.lease(lease.id)).executable, time.time())
            await self._open_door(lease.id)
            # In this thread: the sandbox dies with the thread that started it, were it not for the keeper in between.
            own = packages.of(Folder(self._home.lease(lease.id)), self._home, self._config)
            process = supervisor.start(lease.id, self._home, self._config, threads=lease.grant.threads, packages=own)
        except (LabApexError, OSError) as error:
            self._do(self._agent.failed(lease.id, f"the executable could not be started: {error}"))
            return
        self._watched[lease.id] = process
        self._do(self._agent.started(lease.id))

    async def _kill(self, lease: UUID) -> None:
        await asyncio.to_thread(_kill, Folder(self._home.lease(lease)))

    def _upload(self, lease: UUID, asked: Errand, work: Coroutine[Any, Any, None]) -> None:
        """One upload after the other; a challenge that is repeated starts nothing anew, and while a job trains what is under
        way comes first: on a slow line fewer states are handed in, and none is begun in vain."""
        running, training = self._uploads.get(lease), self._row(lease).phase is Phase.RUNNING
        if running is not None and not running[0].done() and (running[1] == asked or training):
            work.close()
            return
        if running is not None:
            running[0].cancel()
        self._uploads[lease] = (self._spawn(work, lease), asked)

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
        await asyncio.to_thread(_kill, folder)
        self._reap(lease)
        try:
            await asyncio.to_thread(folder.remove)
        except OSError as error:  # the next daemon tries again
            log.error("lease %s: %s", lease, error)
        self._uploads.pop(lease, None)
        self._do(self._agent.discarded(lease))
        log.info("lease %s: deleted", lease)
        logs.JOBS.pop(lease, None)
        if self._once:
            self._stop.set()

    def _no_more_if_once(self) -> None:
        """A job is done when its lease is over, long after its slot is free: no other may be begun meanwhile."""
        if self._once:
            self._last_job = True
            self._do(self._agent.hold("it ends after this job"))

    # -- processes -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            self._do(self._agent.tick(time.monotonic()))
            for lease in list(self._watched):
                if isinstance(ended := journal.look(self._home.lease(lease)), journal.Ended):
                    self._reap(lease)
                    log.info("lease %s: the executable ended, %s", lease, ended)
                    self._heed(self._decide())  # what ended it, a full disk, would meet the next one as well
                    self._do(self._agent.exited(lease, journal.how(self._home.lease(lease), ended)))
            await asyncio.sleep(TICK_SECONDS)

    async def _observe(self) -> None:
        """What the jobs' GPU does, seen from outside of their sandboxes; a GPU that is lost ends them."""
        while True:
            jobs = {
                lease: state.pid
                for lease in self._watched
                if isinstance(state := journal.look(self._home.lease(lease)), journal.Alive) and state.pid is not None
            }
            gpu = next((device for device in self._devices if device.kind == "cuda" and device.usable), None)
            if jobs and gpu is not None:
                try:
                    seen = await asyncio.to_thread(devices.observe, gpu, jobs)
                except nvml.GpuLost as problem:
                    log.error("%s: %s", gpu, problem)
                    self._do(self._agent.give_back(f"{gpu}: {problem}"))
                    self._connection.hang_up("what this host has is to be told anew")
                except nvml.DriverProblem as problem:
                    log.debug("%s: no figures: %s", gpu, problem)
                else:
                    for lease, reading in seen.items():
                        self._do(self._agent.observed(lease, reading))
            await asyncio.sleep(OBSERVE_SECONDS)

    def _reap(self, lease: UUID) -> None:
        process: Any = self._watched.pop(lease, None)
        if process is not None:
            process.poll()

    def _hear(self, lease: UUID, data: bytes, peer: int) -> None:
        try:
            self._do(self._agent.from_executable(lease, data, peer))
        except DiskFull as error:
            self._break(error)
            raise MalformedInput("it could not be kept") from error  # ends the executable's connection; it comes again

    async def _open_door(self, lease: UUID) -> None:
        folder = Folder(self._home.lease(lease))
        folder.create()
        door = Door(
            folder.socket,
            may_speak=lambda pid: self._agent.may_speak(lease, pid),
            hear=lambda data, pid: self._hear(lease, data, pid),
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
            self._break(error)

    def _break(self, error: BaseException) -> None:
        """Something that cannot be mended here: better to stop and start anew from what is on disk."""
        self._broken = self._broken or error
        self._stop.set()


def _kill(folder: Folder) -> None:
    """Whatever runs of a lease."""
    for each in (folder, folder.again):
        journal.kill(each.path)


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Two daemons must not share a folder."""
    with home.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another daemon works in {home.path}; stop it, or choose another --home") from None
        yield


def run(home: Home, *, slots: int, once: bool) -> bool:
    """Run a worker until it is told to stop. True: it is to begin anew, as a newer version."""

    async def main() -> bool:
        return await Daemon(home, slots=slots, once=once).run()

    home.create()
    with only_one(home):
        while True:
            try:
                return asyncio.run(main())
            except DiskFull as error:
                log.error("%s; what runs goes on, and the daemon does once there is room", error)
                time.sleep(FULL_SECONDS)
