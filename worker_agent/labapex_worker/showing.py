"""What a host shows of a run when the platform asks for it: a chunk of many states, or whole ones; one after the other.

States that were not kept are made anew first (`regeneration`); a run that an earlier daemon began for it is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable
from uuid import UUID

import httpx

from labapex.errors import LabApexError
from labapex_worker import journal, packages, regeneration, transfers
from labapex_worker.config import Home
from labapex_worker.effects import Upload, UploadChunks
from labapex_worker.owner import Owner
from labapex_worker.phases import Phase
from labapex_worker.spool import Lease
from labapex_worker.supervisor import Folder
from labapex_worker.tasks import Tasks

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25  # between two looks at a run that makes states anew


class Showing:
    """`failed`: to be told of a lease that cannot show what it must, and why."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        home: Home,
        owner: Owner,
        tasks: Tasks,
        failed: Callable[[UUID, str], None],
    ) -> None:
        self._http, self._home, self._owner, self._tasks, self._failed = http, home, owner, tasks, failed
        self._under_way: dict[UUID, tuple[asyncio.Task[None], Upload | UploadChunks]] = {}
        self._again: dict[UUID, subprocess.Popen[bytes]] = {}  # runs that this daemon started, which have to be reaped

    def show(self, lease: Lease, asked: Upload | UploadChunks) -> None:
        """Begin to hand in what is asked for. A challenge that is repeated starts nothing anew, and while a job trains what is
        under way comes first: on a slow line fewer states are handed in, and none is begun in vain."""
        if (before := self._under_way.get(lease.id)) is not None:
            task, what = before
            if not task.done() and (what == asked or lease.phase is Phase.RUNNING):
                return
            task.cancel()
        work = self._chunks(lease, asked) if isinstance(asked, UploadChunks) else self._states(lease, asked)
        self._under_way[lease.id] = (self._tasks.spawn(work, lease.id), asked)

    def forget(self, lease: UUID) -> None:
        self._under_way.pop(lease, None)

    async def _chunks(self, lease: Lease, asked: UploadChunks) -> None:
        log.info("lease %s: the platform asks for chunk %d of %d states", lease.id, asked.number, len(asked.indices))
        folder = Folder(self._home.lease(lease.id))
        try:
            await transfers.upload_chunks(self._http, lease.grant, folder, asked.number, asked.indices, asked.deadline)
        except LabApexError as error:
            log.error("lease %s: %s", lease.id, error)
        else:
            log.info("lease %s: chunk %d handed in", lease.id, asked.number)

    async def _states(self, lease: Lease, asked: Upload) -> None:
        log.info("lease %s: the platform asks for %d states", lease.id, len(asked.indices))
        folder = Folder(self._home.lease(lease.id))
        kept = (await asyncio.to_thread(regeneration.contract, folder)).kept_leaves()
        others = tuple(sorted(set(asked.indices) - kept))
        handed_in = 0
        if others:
            try:
                await self._regenerate(lease.id, others)
            except (LabApexError, OSError) as error:
                self._failed(lease.id, f"states that were not kept could not be made anew: {error}")
                return
        for index in dict.fromkeys(asked.indices):
            try:
                place = folder if index in kept else folder.again
                await transfers.upload(self._http, lease.grant, place, index, asked.deadline)
                handed_in += 1
            except LabApexError as error:
                log.error("lease %s: %s", lease.id, error)
        log.info("lease %s: %d of %d states handed in", lease.id, handed_in, len(set(asked.indices)))

    async def _regenerate(self, lease: UUID, states: tuple[int, ...]) -> None:
        """Have states made anew. Raises `LabApexError` or `OSError` where they cannot be made."""
        folder = Folder(self._home.lease(lease))
        tries, ended = 0, ""
        while not set(states) <= regeneration.made(folder):
            if not isinstance(journal.look(folder.again.path), journal.Alive):
                if tries == regeneration.TRIES:
                    raise regeneration.CannotRegenerate(f"the run ended {tries} times, the last time so: {ended}")
                tries += 1
                log.info("lease %s: making %d states anew that were not kept", lease, len(states))
                # In this thread: the sandbox dies with the thread that started it, were it not for the keeper in between.
                own, torch = packages.of(folder, self._home, self._owner.config)
                self._again[lease] = regeneration.start(folder, self._owner.config, states, own, torch)
            while isinstance(now := journal.look(folder.again.path), journal.Alive):
                await asyncio.sleep(LOOK_SECONDS)
            if isinstance(now, journal.Ended):
                ended = journal.how(folder.again.path, now)
            if (process := self._again.pop(lease, None)) is not None:
                process.poll()
        log.info("lease %s: %d states were made anew", lease, len(states))
