"""The live page's socket: everything about a job since a cursor, then everything new, each thing once and in order."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import parse_qs
from uuid import UUID

from channels.generic.websocket import AsyncWebsocketConsumer

from labapex.protocol.api import JobView, Scope
from labapex_server.accounts import organisations
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.lib import metrics
from labapex_server.lib.errors import Refused
from labapex_server.telemetry.charts import Cursor
from labapex_server.telemetry.offload import offload
from labapex_server.web import hub as hubs
from labapex_server.web.views.common import ACTING

NOT_FOUND = 4404
BAD_CURSOR = 4400


def _may_watch(person: User, organisation: int | None, job_id: UUID) -> bool:
    try:
        acting = organisations.acting(person, organisation)
    except organisations.NoMember:
        return False
    return Scope.JOBS_READ in acting.scopes and jobs.find(acting.principal, job_id) is not None


class LiveConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """`/live/jobs/<uuid>/?cursor=&have=`: sends `labapex.protocol.api.Events` as JSON to the job's owner; hears nothing.

    `have`: a page that was given a drawing (`/jobs/<uuid>/chart/`) is not sent the losses before this iteration again."""

    async def connect(self) -> None:
        self._feed: asyncio.Task[None] | None = None
        await self.accept()  # a close code reaches a page only on an accepted socket
        user = self.scope.get("user")
        job_id: UUID = self.scope["url_route"]["kwargs"]["job"]
        organisation = self.scope["session"].get(ACTING)
        if not isinstance(user, User) or not await offload(_may_watch, user, organisation, job_id):
            await self.close(NOT_FOUND)
            return
        query = parse_qs(self.scope["query_string"].decode("latin-1"))
        try:
            cursor = Cursor.parse(query.get("cursor", [""])[0])
            have = int(query.get("have", ["0"])[0][:20])
        except (Refused, ValueError):
            await self.close(BAD_CURSOR)
            return
        self._feed = asyncio.get_running_loop().create_task(self._send_events(job_id, cursor, have))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.close(BAD_CURSOR)  # the page has nothing to say here

    async def disconnect(self, code: int) -> None:
        if self._feed is not None:
            self._feed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._feed

    async def _send_events(self, job_id: UUID, cursor: Cursor, have: int) -> None:
        hub = hubs.watch(job_id)
        shown: JobView | None = None
        try:
            metrics.CONNECTIONS.labels("page").inc()
            while True:
                tick = hub.tick
                page = await hub.since(cursor, have)
                if page.moved or page.after != cursor or page.job != shown:
                    await self.send(text_data=page.text)
                    shown, cursor = page.job, page.after
                if not page.moved:
                    await hub.wait(tick)
        except LookupError:
            await self.close(NOT_FOUND)
        finally:
            metrics.CONNECTIONS.labels("page").dec()
            await hubs.leave(hub)
