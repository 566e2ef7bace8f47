"""What the daemon does beside other things: tasks of a lease, which end with it, and tasks of the daemon itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID


class Tasks:
    """`broken` is told what a task raises."""

    def __init__(self, broken: Callable[[BaseException], None]) -> None:
        self._broken = broken
        self._leases: dict[asyncio.Task[None], UUID | None] = {}

    def spawn(self, work: Coroutine[Any, Any, None], lease: UUID | None = None) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._leases[task] = lease
        task.add_done_callback(self._ended)
        return task

    def cancel(self, lease: UUID) -> None:
        """All that is done for this lease."""
        for task, of in list(self._leases.items()):
            if of == lease:
                task.cancel()

    async def end(self) -> None:
        tasks = list(self._leases)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._leases[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)
