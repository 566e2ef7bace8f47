"""The live page's socket: whoever may look gets every point once and in order, however many look and however slowly."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Self

import pytest
from django.conf import settings as django_settings
from django.test import Client
from tests.labapex_server.gateway.agent import PATIENCE
from tests.labapex_server.gateway.fixtures import platform, rig, run, threads
from tests.labapex_server.gateway.stage import Host, Run, a_run, queued_job
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from labapex.protocol.api import Events
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import charts, hints
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.charts import Cursor
from labapex_server.telemetry.offload import offload
from labapex_server.verification import services as verification
from labapex_server.web import hub as hubs

__all__ = ["platform", "rig", "run", "threads"]


def session(user: User | None) -> str:
    """A signed-in browser's cookie."""
    client = Client()
    if user is not None:
        client.force_login(user)
    morsel = client.cookies.get(django_settings.SESSION_COOKIE_NAME)
    return "" if morsel is None else f"{morsel.key}={morsel.value}"


class Page:
    """A page that follows a job and keeps what it was told."""

    def __init__(self, platform: str, job: uuid.UUID, cookie: str, cursor: str = "", **kwargs: str) -> None:
        self.url = f"{platform.replace('http', 'ws', 1)}/live/jobs/{job}/?cursor={cursor}"
        self.headers = {"Cookie": cookie, "Origin": platform, **kwargs}
        self.cursor = cursor
        self.losses: list[float | None] = []
        self.lines = 0
        self.messages = 0
        self.last: Events | None = None
        self.socket: ClientConnection

    async def __aenter__(self) -> Self:
        self.socket = await connect(self.url, additional_headers=self.headers, max_size=None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()

    async def hear(self) -> Events:
        async with asyncio.timeout(PATIENCE):
            events = Events.model_validate_json(await self.socket.recv())
        if events.restarted:
            self.losses, self.lines = [], 0
        assert not events.losses or events.first == len(self.losses), "a point is missing or doubled"
        self.losses += events.losses
        self.lines += len(events.console)
        self.cursor, self.last, self.messages = events.cursor, events, self.messages + 1
        return events

    async def until(self, points: int) -> None:
        while len(self.losses) < points:
            await self.hear()

    async def refused(self) -> int:
        with pytest.raises(ConnectionClosed) as closed:
            await self.hear()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


@pytest.fixture
def cookie(threads: None, researcher: User) -> str:
    return session(researcher)


@pytest.fixture
async def long_run(platform: str, rig: Host, researcher: User) -> Run:
    """A run of 600 iterations in 200 frames."""
    job = await offload(queued_job, researcher, per_epoch=300, every=50)
    return await offload(a_run, job, rig, frame_losses=3)


async def feed(run: Run, start: int = 0, stop: int | None = None) -> None:
    for frame in run.executable.frames[start:stop]:
        await offload(telemetry.ingest, run.host.worker.pk, frame)


async def test_a_page_is_told_what_is_there_and_then_what_comes(platform: str, run: Run, cookie: str) -> None:
    await feed(run, 0, 2)
    async with Page(platform, run.lease.job_id, cookie) as page:
        await page.until(8)
        await feed(run, 2)
        await page.until(14)
        assert page.losses == run.executable.losses
        assert page.last is not None
        assert page.last.job.state == JobState.RUNNING


async def test_a_page_that_reconnects_with_its_cursor_misses_nothing(platform: str, run: Run, cookie: str) -> None:
    async with Page(platform, run.lease.job_id, cookie) as page:
        await feed(run, 0, 1)
        await page.until(4)
    await feed(run, 1, 3)
    async with Page(platform, run.lease.job_id, cookie, page.cursor) as again:
        again.losses = list(page.losses)
        await again.until(12)
        await feed(run, 3)
        await again.until(14)
    assert again.losses == run.executable.losses


@pytest.mark.parametrize("ring", [20_000, 30])
async def test_a_page_that_has_a_drawing_of_a_run_is_not_sent_its_points(
    platform: str, long_run: Run, cookie: str, monkeypatch: pytest.MonkeyPatch, ring: int
) -> None:
    monkeypatch.setattr(hubs, "PAGE_POINTS", ring)
    await feed(long_run, 0, 100)
    drawn = str(Cursor(long_run.lease.pk))
    async with Page(platform, long_run.lease.job_id, cookie, f"{drawn}&have=300") as page:
        page.losses = long_run.executable.losses[:300]
        while page.lines < 100:
            assert (await page.hear()).losses == ()
        await feed(long_run, 100)
        await page.until(600)
    assert page.losses == long_run.executable.losses


async def test_a_drawing_of_another_lease_saves_no_point(platform: str, long_run: Run, cookie: str) -> None:
    await feed(long_run, 0, 100)
    async with Page(platform, long_run.lease.job_id, cookie, f"{Cursor(uuid.uuid4())}&have=300") as page:
        await page.until(300)
    assert page.losses == long_run.executable.losses[:300]


async def test_a_hundred_pages_get_all_points_once(platform: str, long_run: Run, cookie: str) -> None:
    pages = [Page(platform, long_run.lease.job_id, cookie) for _ in range(100)]

    async def follow(page: Page) -> None:
        async with page:
            await page.until(600)

    async with asyncio.TaskGroup() as group:
        for page in pages:
            group.create_task(follow(page))
        await feed(long_run)
    assert all(page.losses == long_run.executable.losses for page in pages)


async def test_a_page_older_than_the_ring_is_served_from_the_database(
    platform: str, long_run: Run, cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "PAGE_POINTS", 30)
    monkeypatch.setattr(charts, "PAGE_POINTS", 30)
    async with Page(platform, long_run.lease.job_id, cookie) as first:
        await first.hear()
        await feed(long_run)
        await first.until(600)
        async with Page(platform, long_run.lease.job_id, cookie) as late:
            await late.until(600)
    assert first.losses == late.losses == long_run.executable.losses
    assert late.messages > 10


async def test_a_page_that_does_not_read_holds_up_nobody(platform: str, long_run: Run, cookie: str) -> None:
    async with (
        Page(platform, long_run.lease.job_id, cookie) as stalled,
        Page(platform, long_run.lease.job_id, cookie) as healthy,
    ):
        stalled.socket.transport.pause_reading()
        await feed(long_run)
        await healthy.until(600)
        stalled.socket.transport.resume_reading()
        await stalled.until(600)
    assert stalled.losses == healthy.losses == long_run.executable.losses


async def test_no_hint_is_needed(platform: str, run: Run, cookie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "ring", lambda topic: None)
    monkeypatch.setattr(hubs, "LOOK_SECONDS", 0.02)
    async with Page(platform, run.lease.job_id, cookie) as page:
        await page.hear()
        await feed(run)
        await page.until(14)


async def test_another_lease_starts_the_curves_again(
    platform: str, run: Run, rig: Host, researcher: User, cookie: str
) -> None:
    async with Page(platform, run.lease.job_id, cookie) as page:
        await feed(run, 0, 2)
        await page.until(8)
        await offload(Lease.objects.update, expires_at=clock.after(-1))
        await offload(marketplace.expire_silent, clock.now())
        again = await offload(a_run, await offload(Job.objects.get, pk=run.lease.job_id), rig)
        while page.losses:
            await page.hear()
        await feed(again)
        await page.until(14)
        assert page.losses == again.executable.losses


async def test_a_change_of_state_is_told(platform: str, run: Run, cookie: str) -> None:
    async with Page(platform, run.lease.job_id, cookie) as page:
        await page.hear()
        await offload(verification.stop, run.lease.job)
        while page.last is None or page.last.job.state is not JobState.CANCELLED:
            await page.hear()


async def test_a_job_without_a_worker_has_a_page(platform: str, researcher: User, cookie: str) -> None:
    job = await offload(queued_job, researcher)
    async with Page(platform, job.pk, cookie) as page:
        assert (await page.hear()).job.state is JobState.QUEUED


async def test_others_see_nothing(platform: str, run: Run, other_researcher: User) -> None:
    for user in (other_researcher, None):
        async with Page(platform, run.lease.job_id, await offload(session, user)) as page:
            assert await page.refused() == 4404


async def test_a_job_that_does_not_exist_is_not_found(platform: str, cookie: str) -> None:
    async with Page(platform, uuid.uuid4(), cookie) as page:
        assert await page.refused() == 4404


async def test_a_page_of_another_site_is_refused(platform: str, run: Run, cookie: str) -> None:
    with pytest.raises(InvalidStatus):
        async with Page(platform, run.lease.job_id, cookie, Origin="https://evil.example"):
            pass


@pytest.mark.parametrize("cursor", ["x", "1:2:3:4", "::::"])
async def test_what_is_no_cursor_is_refused(platform: str, run: Run, cookie: str, cursor: str) -> None:
    async with Page(platform, run.lease.job_id, cookie, cursor) as page:
        assert await page.refused() == 4400


async def test_a_page_that_talks_is_cut_off(platform: str, run: Run, cookie: str) -> None:
    async with Page(platform, run.lease.job_id, cookie) as page:
        await page.socket.send("x")
        async with asyncio.timeout(PATIENCE):
            await page.socket.wait_closed()
        assert page.socket.close_code == 4400


@pytest.fixture(autouse=True)
def _no_hub_is_left(threads: None) -> Iterator[None]:
    yield
    assert not hubs._hubs, "a hub outlived its viewers"
