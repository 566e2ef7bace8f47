"""One reader for all who watch a job.

A hundred pages on one run must not read the database a hundred times for each new point. Per process and job one hub
wakes at a hint, or once a second anyway, reads what is new once, keeps the latest pieces in a ring, and wakes its
viewers. Each viewer owns its cursor: it is told everything since, from the ring where that reaches back far enough and
from the database where it does not. A slow viewer loses nothing and holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from uuid import UUID

from labapex.protocol.api import JobView
from labapex_server.jobs.models import Job
from labapex_server.telemetry import charts, hints
from labapex_server.telemetry.charts import PAGE_POINTS, PAGE_TEXT, Cursor, Piece, Standing
from labapex_server.telemetry.offload import offload

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
COALESCE_SECONDS = 0.04

_hubs: dict[tuple[asyncio.AbstractEventLoop, UUID], Hub] = {}


@dataclass(frozen=True)
class Page:
    """One page for one cursor, written out: viewers that have seen the same are told the same."""

    text: str  # Events as JSON
    after: Cursor
    moved: bool  # there were frames in it, so there may be more
    job: JobView


class Hub:
    """What this process knows of one job. Get it with `watch`, and `leave` it."""

    def __init__(self, job_id: UUID) -> None:
        self.job_id = job_id
        self.tick = 0  # counts the news
        self.viewers = 0
        self._standing: Standing | None = None
        self._ring: deque[Piece] = deque()
        self._end = 0  # the frame that comes next; the ring holds those just before it
        self._points = self._text = 0
        self._pages: dict[tuple[Cursor, int], Page] = {}
        self._looked = asyncio.Event()
        self._news = asyncio.Condition()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self, tick: int) -> None:
        """Return once there were news after `tick`."""
        async with self._news:
            await self._news.wait_for(lambda: self.tick > tick)

    async def since(self, cursor: Cursor, have: int = 0) -> Page:
        """One page of what a viewer with this cursor has not seen, without the losses before iteration `have`, of which it
        has a drawing of the same lease. Raises `LookupError` where the job is gone."""
        await self._looked.wait()
        standing = self._standing
        if standing is None:
            raise LookupError(f"job {self.job_id} is gone")
        if cursor.lease != standing.lease:
            have = 0
        if (cursor, have) in self._pages:
            return self._pages[cursor, have]
        start = charts.start(standing, cursor)
        if start >= self._end - len(self._ring):
            known = (piece.beyond(have) for piece in self._ring if piece.seq >= start)
            page = self._pages[cursor, have] = _page(standing, cursor, list(charts.page(known)))
            return page
        return _page(standing, cursor, await offload(charts.pieces, standing.parts, start, have))

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        bell = hints.Bell(hints.job_topic(self.job_id))
        try:
            while True:
                more = False
                try:
                    more = await self._look()
                except Exception:  # the database may be away for a while; the pages wait for it
                    log.exception("job %s cannot be read", self.job_id)
                await asyncio.sleep(COALESCE_SECONDS)
                if not more:
                    await bell.wait(LOOK_SECONDS)
        finally:
            bell.close()

    async def _look(self) -> bool:
        """Read what is new and wake the viewers. True: a page was full, there is more."""
        before = self._standing
        lease = None if before is None else before.lease
        standing, end, new = await offload(_read, self.job_id, lease, self._end)
        if before is None or standing is None or standing.lease != lease:
            self._ring.clear()
            self._points = self._text = 0
            self._end = end
        for piece in new:
            self._keep(piece)
        changed = bool(new) or _differs(before, standing)
        self._standing = standing
        self._looked.set()
        if changed:
            self._pages.clear()
            async with self._news:
                self.tick += 1
                self._news.notify_all()
        return charts.full(new)

    def _keep(self, piece: Piece) -> None:
        self._ring.append(piece)
        self._end = piece.seq + 1
        self._points += piece.points
        self._text += piece.text
        while len(self._ring) > 1 and (self._points > PAGE_POINTS or self._text > PAGE_TEXT):
            oldest = self._ring.popleft()
            self._points -= oldest.points
            self._text -= oldest.text


def watch(job_id: UUID) -> Hub:
    """The process's hub of a job, for one more viewer."""
    key = (asyncio.get_running_loop(), job_id)
    if key not in _hubs:
        _hubs[key] = Hub(job_id)
    _hubs[key].viewers += 1
    return _hubs[key]


async def leave(hub: Hub) -> None:
    """One viewer less; the last one ends the hub."""
    hub.viewers -= 1
    if hub.viewers == 0:
        del _hubs[asyncio.get_running_loop(), hub.job_id]
        await hub.end()


def _read(job_id: UUID, lease: UUID | None, end: int) -> tuple[Standing | None, int, list[Piece]]:
    """How the job stands, where its log ends, and the frames from `end` on where `lease` is still the one shown."""
    job = Job.objects.select_related("hold").filter(pk=job_id).first()
    if job is None:
        return None, 0, []
    standing = Standing.of(job)
    if standing.lease is None:
        return standing, 0, []
    if standing.lease != lease:
        return standing, charts.length(standing.parts), []
    return standing, end, charts.pieces(standing.parts, end)


def _page(standing: Standing, cursor: Cursor, new: list[Piece]) -> Page:
    events = charts.compose(standing, cursor, new)
    return Page(
        events.model_dump_json(exclude_defaults=True), Cursor.parse(events.cursor), bool(new), _timeless(standing.job)
    )


def _differs(before: Standing | None, after: Standing | None) -> bool:
    if before is None or after is None:
        return before is not after
    return (
        before.lease != after.lease or before.version != after.version or _timeless(before.job) != _timeless(after.job)
    )


def _timeless(job: JobView) -> JobView:
    """A view without what changes merely because time passes."""
    return job.model_copy(update={"progress": job.progress.model_copy(update={"eta_seconds": None})})
