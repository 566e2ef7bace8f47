"""A newer version of the agent, fetched beside the one that runs: it takes over once no job is here."""

from __future__ import annotations

import logging
import time

import httpx

from labapex.errors import LabApexError
from labapex_worker import releases
from labapex_worker.config import Home
from labapex_worker.releases import Shelf
from labapex_worker.trust import Keeper

log = logging.getLogger(__name__)


class Updates:
    def __init__(self, home: Home, http: httpx.AsyncClient, keeper: Keeper) -> None:
        self._http, self._keeper, self._shelf = http, keeper, Shelf(home)
        self._next: str | None = None

    def came_up(self) -> None:
        """The version that runs works."""
        self._shelf.came_up()

    @property
    def reason(self) -> str | None:
        """Why no work is taken; None: no version waits."""
        return f"version {self._next} of the agent takes over after the last job" if self._next else None

    async def look(self) -> None:
        """Have what the platform offers beside this one, where it is newer."""
        if self._next is not None:
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

    def take_over(self) -> bool:
        """No job is here: whether a newer version is in place now, to be started instead of this one."""
        if self._next is None:
            return False
        self._shelf.switch(self._next)
        return True
