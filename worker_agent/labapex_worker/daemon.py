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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from labapex.errors import MalformedInput, UsageError
from labapex.protocol.devices import Observation
from labapex_worker import (
    cgroups,
    devices,
    effects,
    executables,
    journal,
    logs,
    metrics,
    observer,
    packages,
    room,
    transfers,
)
from labapex_worker.agent import Agent, Errand, ToExecutable, ToPlatform
from labapex_worker.config import Home
from labapex_worker.connection import Connection
from labapex_worker.control import Control, Question
from labapex_worker.executables import Executables
from labapex_worker.identity import Identity
from labapex_worker.leases import Leases
from labapex_worker.limits import Go, Pause, in_utc
from labapex_worker.owner import Owner
from labapex_worker.phases import Phase
from labapex_worker.showing import Showing
from labapex_worker.spool import DiskFull, Lease, Spool
from labapex_worker.status import Status, of_leases
from labapex_worker.supervisor import Folder
from labapex_worker.tasks import Tasks
from labapex_worker.trial import Trials
from labapex_worker.trust import Keeper
from labapex_worker.updates import Updates

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
LIMITS_SECONDS = 5.0  # how often the host is held against its owner's limits
FULL_SECONDS = 2.0  # between two tries to go on with a disk that is full
TRUST_SECONDS = 3600.0  # after which the platform is asked again whose signatures count
DISTRUST_SECONDS = 30.0  # likewise, while nothing of the platform could be started


class Daemon:
    """One worker. `once`: end after one lease is over."""

    def __init__(self, home: Home, *, slots: int = 1, once: bool = False) -> None:
        self._home, self._once = home, once
        self._owner = Owner(home)
        config = self._owner.config
        self._identity = Identity.load(home.key)
        self._keeper = Keeper(home, config)
        self._devices = devices.find()
        self._spool = Spool(home.database, quota=config.spool_bytes)
        self._agent = Agent(self._spool, slots=1 if once else slots)
        self._connection = Connection(
            config.platform,
            opened=self._opened,
            received=lambda data: self._do(self._agent.from_platform(data, time.monotonic())),
            closed=self._closed,
            longest_pause=lambda: self._agent.session.longest_pause,
        )
        self._http = transfers.client(config)
        self._tasks = Tasks(self._break)
        self._updates = Updates(home, self._http, self._keeper)
        self._executables = Executables(
            home,
            self._keeper,
            self._owner,
            may_speak=self._agent.may_speak,
            hear=self._hear,
            broken=self._failed,
        )
        self._showing = Showing(self._http, home, self._owner, self._tasks, self._failed)
        self._leases = Leases(
            home,
            self._owner,
            self._http,
            self._keeper,
            self._executables,
            self._agent,
            do=self._do,
            room_changed=lambda: self._heed(self._decide()),
            gone=self._gone,
        )
        self._trials = Trials(home, self._owner, self._tasks, self._connection.send)
        self._control = Control(home.control, self._answer)
        self._page = metrics.Page(self._status)
        self._trouble = logs.LastTrouble()
        self._connected_since: float | None = None
        self._last_job = False
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
        config, found = self._owner.config, "; ".join(map(str, self._devices))
        log.info("worker %s (%s) on %s", config.worker, config.name, found)
        try:
            cgroups.settle()
        except OSError as error:
            log.error("jobs get no control groups, as the daemon cannot move into one of its own: %s", error)
        try:
            await self._look_around()
            if self._spool.leases():
                self._no_more_if_once()
            await self._heed_owner()  # before the platform hears that work is wanted
            self._do(self._agent.restored())
            await self._control.open()
            self._updates.came_up()
            await self._page.listen(self._owner.config.limits.metrics_port)
            self._tasks.spawn(self._connection.run())
            self._tasks.spawn(self._watch())
            self._tasks.spawn(self._watch_limits())
            self._tasks.spawn(
                observer.observe(lambda: self._devices, self._executables.alive, seen=self._seen, lost=self._lost)
            )
            self._tasks.spawn(self._believe())
            await self._stop.wait()
        finally:
            log.info("stopping; what runs goes on without the daemon")
            self._agent.session.hold("it stops")
            await self._control.close()
            await self._page.close()
            await self._tasks.end()
            await self._executables.close()
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
            if not self._once and self._owner.config.updates:
                await self._updates.look()
            await self._heed_owner()
            pause = TRUST_SECONDS if self._keeper.problem(time.time()) is None else DISTRUST_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news_of_trust.wait()

    # -- going on after another daemon ---------------------------------------------------------------------------------

    async def _look_around(self) -> None:
        await asyncio.to_thread(packages.store(self._home, self._owner.config).sweep)
        leases = self._spool.leases()
        logs.JOBS.update({lease.id: lease.grant.job for lease in leases})
        known = {self._home.lease(lease.id) for lease in leases}
        for path in (self._home.path / "jobs").iterdir():
            if path not in known:
                log.warning("deleting %s, which belongs to no lease", path)
                executables.kill(Folder(path))
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
                    await self._executables.meet(lease.id)
                    self._do(self._agent.started(lease.id))
                case journal.NeverStarted() if lease.phase is Phase.STARTING:
                    self._tasks.spawn(self._leases.start(lease), lease.id)
                case journal.Ended() as ended:
                    self._do(self._agent.exited(lease.id, self._executables.how(lease.id, ended)))
                case journal.NeverStarted():
                    self._do(self._agent.exited(lease.id, "its files are gone"))

    # -- the owner -----------------------------------------------------------------------------------------------------

    async def _answer(self, question: Question) -> Status:
        """One command of the owner's."""
        if question.what == "reload":
            self._owner.read_again()
            await self._heed_owner()
            await self._page.listen(self._owner.config.limits.metrics_port)
        return self._status()

    async def _watch_limits(self) -> None:
        while True:
            await self._heed_owner()
            await asyncio.sleep(LIMITS_SECONDS)

    async def _heed_owner(self) -> None:
        """Look at the host, and take work, take none, or give it back, as its owner wants it."""
        folders = [Folder(self._home.lease(lease.id)) for lease in self._spool.leases()]
        await self._owner.look(self._devices, [pid for folder in folders for pid in executables.leaders(folder)])
        decision = self._decide()
        self._heed(decision)
        if (reason := self._owner.takes_back(decision)) is not None:
            self._do(self._agent.give_back(reason))
        if not self._spool.leases() and self._updates.take_over():
            self._restart = True
            self._stop.set()
        if not self._spool.leases() and self._owner.has_drained():
            self._stop.set()

    def _heed(self, decision: Go | Pause) -> None:
        if isinstance(decision, Pause):
            if decision.reason != self._agent.session.held:
                log.info("no new work is taken: %s", decision.reason)
            self._do(self._agent.hold(decision.reason))
        else:
            if self._agent.session.held is not None:
                log.info("work is taken again")
            config, now = self._owner.config, datetime.now().astimezone()
            hours = in_utc(config.limits.hours, now)
            self._do(self._agent.go(config.limits.price_per_hour, room.of_host(config, self._home.path), hours))

    def _decide(self) -> Go | Pause:
        ends = "it ends after this job" if self._last_job else None
        return self._owner.decide(ends, self._keeper.problem(time.time()), self._updates.reason)

    def _status(self) -> Status:
        config, owner = self._owner.config, self._owner
        return Status(
            worker=config.worker,
            name=config.name,
            platform=config.platform,
            pid=os.getpid(),
            connected_since=self._connected_since,
            wish=owner.wish,
            held=self._agent.session.held,
            devices=tuple(map(str, self._devices)),
            power_watts=owner.readings.power_watts,
            temperature=owner.readings.temperature,
            limits=config.limits,
            leases=of_leases(self._home, self._spool.leases()),
            spool_bytes=self._spool.spooled_bytes,
            spool_limit=config.spool_bytes,
            disk_free=shutil.disk_usage(self._home.path).free,
            disk_limit=config.disk_bytes,
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
                    self._executables.tell(lease, told)
                case effects.SayHello(nonce, leases):
                    self._devices = devices.find()  # a GPU may have gone or come since
                    config = self._owner.config
                    lacks_torch = packages.lacks_torch(config)
                    self._connection.send(
                        self._identity.hello(config.worker, nonce, self._devices, leases, lacks_torch=lacks_torch)
                    )
                case effects.Fetch(lease):
                    self._no_more_if_once()
                    row = self._row(lease)
                    logs.JOBS[lease] = row.grant.job
                    self._tasks.spawn(self._leases.fetch(row), lease)
                case effects.Start(lease):
                    self._tasks.spawn(self._leases.start(self._row(lease)), lease)
                case effects.Kill(lease):
                    self._tasks.spawn(self._leases.kill(lease), lease)
                case effects.UploadChunks(lease) | effects.Upload(lease):
                    self._showing.show(self._row(lease), errand)
                case effects.Discard(lease, reason):
                    log.info("lease %s: over (%s)", lease, reason)
                    self._tasks.cancel(lease)
                    self._tasks.spawn(self._leases.remove(lease))
                case effects.Measure(asked):
                    self._trials.heed(asked)
                case effects.Decline(trial, reason):
                    self._trials.decline(trial, reason)
                case effects.HangUp(reason):
                    self._connection.hang_up(reason)

    def _gone(self, lease: UUID) -> None:
        """Nothing of a lease is left on this host."""
        self._showing.forget(lease)
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
            for lease, ended in self._executables.ended():
                log.info("lease %s: the executable ended, %s", lease, ended)
                self._heed(self._decide())  # what ended it, a full disk, would meet the next one as well
                self._do(self._agent.exited(lease, self._executables.how(lease, ended)))
            await asyncio.sleep(TICK_SECONDS)

    def _seen(self, lease: UUID, reading: Observation) -> None:
        self._do(self._agent.observed(lease, reading))

    def _lost(self, reason: str) -> None:
        """The GPU on which jobs run is gone."""
        self._do(self._agent.give_back(reason))
        self._connection.hang_up("what this host has is to be told anew")

    def _hear(self, lease: UUID, data: bytes, peer: int) -> None:
        try:
            self._do(self._agent.from_executable(lease, data, peer))
        except DiskFull as error:
            self._break(error)
            raise MalformedInput("it could not be kept") from error  # ends the executable's connection; it comes again

    # ------------------------------------------------------------------------------------------------------------------

    def _row(self, lease: UUID) -> Lease:
        if (row := self._spool.lease(lease)) is None:
            raise RuntimeError(f"lease {lease} was given up while work for it was handed out")
        return row

    def _failed(self, lease: UUID, reason: str) -> None:
        self._do(self._agent.failed(lease, reason))

    def _break(self, error: BaseException) -> None:
        """Something that cannot be mended here: better to stop and start anew from what is on disk."""
        self._broken = self._broken or error
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
