"""What a connection costs one process, and what a hundred viewers of one run do: `python benchmarks/connections.py`.

Memory is what the process has more for each connection than before; CPU is that of the process over ten quiet seconds, per
connection and second. Viewers follow runs whose frames come once a second; each must be told every point. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from stand import Stand, standing

if TYPE_CHECKING:
    from tests.labapex_server.gateway.stage import Run

QUIET_SECONDS = 10.0


async def workers(stand: Stand, count: int, *, running: bool) -> dict[str, Any]:
    """So many agents that say nothing but their heartbeats; `running`: each has a lease, else each waits for work."""
    from agents import connected

    from labapex.protocol.frames import Heartbeat, Ready
    from labapex.protocol.packing import pack

    runs = await asyncio.to_thread(stand.runs, count, records=1, frames=4)
    if not running:
        await asyncio.to_thread(_end, runs)
    before = stand.cost()
    async with connected(stand.url, runs) as agents:
        connecting = stand.cost()
        beating = []
        for agent in agents:
            if not running:
                await agent.say(pack(Ready()))
            beating.append(
                asyncio.create_task(agent.beat(pack(Heartbeat(leases=(agent.run.lease.pk,) if running else ()))))
            )
        await asyncio.sleep(5)
        quiet = stand.cost()
        await asyncio.sleep(QUIET_SECONDS)
        after = stand.cost()
        for task in beating:
            task.cancel()
        await asyncio.gather(*beating, return_exceptions=True)
    return {
        "connections": count,
        "kind": "with a running lease" if running else "waiting for work",
        "connect_cpu_ms": round(1e3 * (connecting.cpu - before.cpu) / count, 2),
        "cpu_us_per_second": round(1e6 * (after.cpu - quiet.cpu) / count / QUIET_SECONDS),
        "kib": round((after.rss - before.rss) / count / 1024, 1),
    }


def _end(runs: Sequence[Run]) -> None:
    """These hosts' leases are over, so that they are free."""
    from labapex.protocol.states import JobState, LeaseState
    from labapex_server.jobs.models import Job
    from labapex_server.marketplace.models import Lease

    Lease.objects.filter(pk__in=[run.lease.pk for run in runs]).update(state=LeaseState.FAILED.value)
    Job.objects.filter(pk__in=[run.lease.job_id for run in runs]).update(state=JobState.FAILED.value)


async def viewers(stand: Stand, runs: int, each: int, frames: int) -> dict[str, Any]:
    """`each` pages on each of so many runs, while a frame of 50 points a second comes of each."""
    from agents import connected, percentile
    from django.test import Client
    from websockets.asyncio.client import connect

    from labapex.protocol.api import Events

    made = await asyncio.to_thread(stand.runs, runs, records=50, frames=frames)

    def cookie() -> str:
        client = Client()
        client.force_login(made[0].lease.job.owner)
        return f"sessionid={client.cookies['sessionid'].value}"

    headers = {"Cookie": await asyncio.to_thread(cookie), "Origin": stand.url}
    total, delays, sent = 50 * frames, [], {}
    before = stand.cost()
    async with AsyncExitStack() as ends:
        agents = await ends.enter_async_context(connected(stand.url, made))
        pages = []
        for run in made:
            for _ in range(each):
                url = f"{stand.url.replace('http', 'ws', 1)}/live/jobs/{run.lease.job_id}/?cursor="
                page = await ends.enter_async_context(connect(url, additional_headers=headers, max_size=None))
                pages.append((run.lease.pk, page))
        opened = stand.cost()

        async def follow(lease: Any, page: Any) -> int:
            points = 0
            while points < total:
                events = Events.model_validate_json(await page.recv())
                if events.losses:
                    points += len(events.losses)
                    delays.append(time.perf_counter() - sent[lease, points // 50 - 1])
            return points

        following = [asyncio.create_task(follow(lease, page)) for lease, page in pages]
        for number in range(frames):
            begin = time.perf_counter()
            for agent in agents:
                sent[agent.run.lease.pk, number] = time.perf_counter()
                await agent.say(agent.messages[number])
            await asyncio.sleep(max(0.0, 1 - (time.perf_counter() - begin)))
        told = await asyncio.wait_for(asyncio.gather(*following), 120)
        after = stand.cost()
    assert set(told) == {total}, "a viewer was not told every point once"
    return {
        "viewers": len(pages),
        "runs": runs,
        "p50_ms": round(1e3 * percentile(delays, 0.5), 1),
        "p99_ms": round(1e3 * percentile(delays, 0.99), 1),
        "cpu_us_per_delivery": round(1e6 * (after.cpu - opened.cpu) / (len(pages) * frames)),
        "kib": round((opened.rss - before.rss) / len(pages) / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument(
        "--database-url", default="", help="a PostgreSQL server; a database of our own is made and dropped"
    )
    options = parser.parse_args()
    rows = []
    with standing(options.database_url) as stand, stand.serving():
        for work in (
            workers(stand, 20, running=True),  # imports, and what a process allocates once
            workers(stand, options.count, running=True),
            workers(stand, options.count, running=False),
            viewers(stand, 1, 100, 20),
            viewers(stand, options.count // 20, 20, 10),
        ):
            rows.append(asyncio.run(work))
            print(rows[-1], flush=True)
    print(json.dumps(rows[1:]))


if __name__ == "__main__":
    main()
