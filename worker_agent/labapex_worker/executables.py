"""The executables of this host's leases: started or found again, heard at their doors, and ended."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from uuid import UUID

from labapex.protocol.canonical import Message
from labapex_worker import cgroups, journal, packages, room, supervisor
from labapex_worker.config import Home
from labapex_worker.owner import Owner
from labapex_worker.spool import Lease
from labapex_worker.supervisor import Door, Folder
from labapex_worker.trust import Keeper

log = logging.getLogger(__name__)


class Executables:
    """Of a lease, `may_speak` tells whether a process is its executable, `hear` takes what that says, and `broken` is told why
    nothing more can come of it."""

    def __init__(
        self,
        home: Home,
        keeper: Keeper,
        owner: Owner,
        *,
        may_speak: Callable[[UUID, int], bool],
        hear: Callable[[UUID, bytes, int], None],
        broken: Callable[[UUID, str], None],
    ) -> None:
        self._home, self._keeper, self._owner = home, keeper, owner
        self._may_speak, self._hear, self._broken = may_speak, hear, broken
        self._doors: dict[UUID, Door] = {}
        # None where an earlier daemon started it: what this one started has to be reaped
        self._running: dict[UUID, subprocess.Popen[bytes] | None] = {}

    async def start(self, lease: Lease) -> None:
        """Raises `LabApexError` or `OSError` where it is not to be started, or cannot be; `Lacking` where it does not fit."""
        folder = Folder(self._home.lease(lease.id))
        await asyncio.to_thread(self._keeper.admit, folder.executable, time.time())
        room.check(folder.executable, room.of_host(self._owner.config, self._home.path))
        await self._open_door(lease.id)
        # In this thread: the sandbox dies with the thread that started it, were it not for the keeper in between.
        own, torch = packages.of(folder, self._home, self._owner.config)
        self._running[lease.id] = supervisor.start(
            lease.id, self._home, self._owner.config, threads=lease.grant.threads, packages=own, torch=torch
        )

    async def meet(self, lease: UUID) -> None:
        """One that an earlier daemon started runs still."""
        try:
            supervisor.renew(lease, self._home)
        except OSError as error:
            log.error("lease %s: its control group could not be limited again: %s", lease, error)
        await self._open_door(lease)
        self._running[lease] = None

    def tell(self, lease: UUID, message: Message) -> None:
        if (door := self._doors.get(lease)) is not None:
            door.send(message)

    def alive(self) -> dict[UUID, int]:
        """Those that run, each with the process that leads it."""
        looks = {lease: journal.look(self._home.lease(lease)) for lease in self._running}
        return {
            lease: look.pid for lease, look in looks.items() if isinstance(look, journal.Alive) and look.pid is not None
        }

    def ended(self) -> Iterator[tuple[UUID, journal.Ended]]:
        """Those that have ended since they were asked for last."""
        for lease in list(self._running):
            if isinstance(ended := journal.look(self._home.lease(lease)), journal.Ended):
                self._reap(lease)
                yield lease, ended

    def how(self, lease: UUID, ended: journal.Ended) -> str:
        """How one has ended, in words."""
        words, group = journal.how(self._home.lease(lease), ended), cgroups.of_run(lease.hex)
        if group is not None and group.ran_out():
            words += "; its control group had no memory left, and the kernel ended a part of the job"
        return words

    async def remove(self, lease: UUID) -> None:
        """Kill what runs of a lease and delete its files; what is left the next daemon tries again."""
        if (door := self._doors.pop(lease, None)) is not None:
            await door.close()
        folder = Folder(self._home.lease(lease))
        await asyncio.to_thread(kill, folder)
        self._reap(lease)
        try:
            if (group := cgroups.of_run(lease.hex)) is not None:
                await asyncio.to_thread(group.remove)
            await asyncio.to_thread(folder.remove)
        except OSError as error:
            log.error("lease %s: %s", lease, error)

    async def close(self) -> None:
        """The doors; what runs goes on."""
        for door in self._doors.values():
            await door.close()

    async def _open_door(self, lease: UUID) -> None:
        folder = Folder(self._home.lease(lease))
        folder.create()
        door = Door(
            folder.socket,
            may_speak=lambda pid: self._may_speak(lease, pid),
            hear=lambda data, pid: self._hear(lease, data, pid),
            broken=lambda reason: self._broken(lease, reason),
        )
        await door.open()
        self._doors[lease] = door

    def _reap(self, lease: UUID) -> None:
        if (process := self._running.pop(lease, None)) is not None:
            process.poll()


def kill(folder: Folder) -> None:
    """Whatever runs of a lease."""
    for each in (folder, folder.again):
        journal.kill(each.path)


def leaders(folder: Folder) -> list[int]:
    """The processes that lead what runs of a lease."""
    looks = [journal.look(each.path) for each in (folder, folder.again)]
    return [look.pid for look in looks if isinstance(look, journal.Alive) and look.pid is not None]
