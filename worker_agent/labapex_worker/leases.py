"""What is done on this host for one lease: it is fetched, started, killed, and deleted. What comes of it the agent is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import UUID

import httpx

from labapex.errors import LabApexError
from labapex_worker import executables, packages, room, transfers
from labapex_worker.agent import Agent, Errand
from labapex_worker.config import Home
from labapex_worker.executables import Executables
from labapex_worker.owner import Owner
from labapex_worker.spool import Lease
from labapex_worker.supervisor import Folder
from labapex_worker.trust import Keeper

log = logging.getLogger(__name__)


class Leases:
    """`do` carries out what the agent says then; `room_changed` looks again what work is to be taken; `gone` is told of a lease
    of which nothing is left."""

    def __init__(
        self,
        home: Home,
        owner: Owner,
        http: httpx.AsyncClient,
        keeper: Keeper,
        executables: Executables,
        agent: Agent,
        *,
        do: Callable[[list[Errand]], None],
        room_changed: Callable[[], None],
        gone: Callable[[UUID], None],
    ) -> None:
        self._home, self._owner, self._http, self._keeper = home, owner, http, keeper
        self._executables, self._agent = executables, agent
        self._do, self._room_changed, self._gone = do, room_changed, gone

    async def fetch(self, lease: Lease) -> None:
        """Its executable and its packages."""
        grant = lease.grant
        log.info("lease %s: fetching job %s '%s', %d bytes", lease.id, grant.job, grant.name, grant.size)
        folder = Folder(self._home.lease(lease.id))
        try:
            await transfers.fetch(self._http, grant, folder, self._owner.config, self._keeper)
        except (LabApexError, OSError) as error:
            self._mind_room(error)
            why = f"the executable could not be fetched: {error}"
            told = self._agent.declined if isinstance(error, transfers.NoRoom) else self._agent.failed
            self._do(told(lease.id, why))
            return
        try:
            await packages.prepare(self._http, grant, folder, self._home, self._owner.config)
        except (LabApexError, OSError) as error:
            self._mind_room(error)
            self._do(self._agent.failed(lease.id, f"the job's packages could not be made ready: {error}"))
        else:
            self._do(self._agent.fetched(lease.id))

    async def start(self, lease: Lease) -> None:
        try:
            await self._executables.start(lease)
        except room.Lacking as error:
            self._room_changed()  # tells what room there is
            self._do(self._agent.declined(lease.id, str(error)))
        except (LabApexError, OSError) as error:
            self._do(self._agent.failed(lease.id, f"the executable could not be started: {error}"))
        else:
            self._do(self._agent.started(lease.id))

    async def kill(self, lease: UUID) -> None:
        await asyncio.to_thread(executables.kill, Folder(self._home.lease(lease)))

    async def remove(self, lease: UUID) -> None:
        """All of it."""
        await self._executables.remove(lease)
        self._do(self._agent.discarded(lease))
        log.info("lease %s: deleted", lease)
        self._gone(lease)

    def _mind_room(self, error: Exception) -> None:
        if isinstance(error, transfers.NoRoom):
            self._owner.need(error.needed)
            self._room_changed()
