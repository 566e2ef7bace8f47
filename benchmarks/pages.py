"""How soon a new point is on the screen, and how soon long runs are: `python benchmarks/pages.py`.

A platform of its own as `serve` starts it, with runs that went through the log's real writer, and Chromium. Measured:

* following: an agent's WebSocket sends frames of a live run that a browser and 99 sockets of other pages watch; from sending a
  frame to its point on the screen. Its floor, in the same run: the acknowledgement of the same frames, which is their commit.
* opening: the list of all jobs and the live page of a long run, from the address to all rows and to its loss, and its bytes.
  Beside them a request for `/healthz`, which does nothing.
* the chart: the drawing of a very long run's loss, against all its points read and written out.

The last line is JSON. `--quick` takes fewer and shorter runs. `--database-url` takes PostgreSQL instead of SQLite: an empty
database that is left filled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
from playwright.async_api import Page, async_playwright
from websockets.asyncio.client import connect

if TYPE_CHECKING:
    from tests.labapex_server.gateway.stage import Run

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = "/usr/bin/chromium"
FRAME = 50  # records, as a trainer flushes them
VIEWERS = 100
STAMPS = """() => {
  window.stamps = [];
  const page = document.getElementById("live");
  new MutationObserver(() => requestAnimationFrame(() => stamps.push([Number(page.dataset.points), Date.now() / 1000])))
    .observe(page, { attributes: true, attributeFilter: ["data-points"] });
}"""


def drawn(points: int) -> str:
    """The live page once it shows so many."""
    return f"#live[data-points='{points}']"


def spread(seconds: list[float]) -> dict[str, float]:
    """Milliseconds: median, 95th of a hundred, worst."""
    ordered = sorted(1000 * each for each in seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {"p50": round(statistics.median(ordered), 1), "p95": round(p95, 1), "worst": round(ordered[-1], 1)}


# -- runs, through the writer -----------------------------------------------------------------------------------------


def a_long_run(owner: Any, name: str, length: int, records: int) -> Run:
    from tests.labapex_server.gateway.stage import a_host, a_run, queued_job

    draw = random.Random(name)
    losses = [2.3 * 0.99997**i + abs(draw.gauss(0.05, 0.03)) for i in range(length)]
    epochs = 10
    job = queued_job(
        owner, epochs=epochs, per_epoch=length // epochs, every=max(10, length // 100), name=name, budget="100000"
    )
    return a_run(job, a_host(owner, f"host of {name}"), frame_losses=records, losses=losses)


def feed(run: Run, *, until: int | None = None) -> None:
    """Hand all its frames to the process's writer and wait for the last acknowledgement."""
    from labapex.protocol.frames import Ack
    from labapex_server.telemetry.writer import Submission, writer

    done = threading.Semaphore(0)

    def answer(said: object) -> None:
        assert isinstance(said, Ack), said
        done.release()

    frames = run.executable.frames[:until]
    for frame in frames:
        writer.submit(Submission(run.host.worker.pk, frame, answer))
    for _ in frames:
        done.acquire()


def prepare(runs: int, points: int, most: int, live: int) -> dict[str, Any]:
    from django.core.management import call_command

    from labapex_server.accounts import services as accounts
    from labapex_server.ledger import services as ledger

    call_command("migrate", verbosity=0, interactive=False)
    owner = accounts.create_user("bench", password="a long password for the bench")
    ledger.top_up(ledger.account_of(owner), amount=10**12, memo="bench")
    began = time.perf_counter()
    longest = a_long_run(owner, "longest", most, FRAME)
    feed(longest)
    opened = None
    for number in range(runs):
        run = a_long_run(owner, f"run {number}", points, FRAME if number == runs - 1 else 2000)
        feed(run)
        opened = run
        run.executable.frames.clear()
    assert opened is not None
    watched = a_long_run(owner, "watched", FRAME * 40 + live * 5, 5)
    start = FRAME * 40 // 5
    feed(watched, until=start)
    print(f"{runs} runs of {points:,} points and one of {most:,} in {time.perf_counter() - began:.0f} s", flush=True)
    return {
        "owner": owner,
        "longest": longest.lease.job_id,
        "opened": opened.lease.job_id,
        "watched": watched,
        "start": start,
    }


def cookie(owner: Any) -> str:
    from django.test import Client

    client = Client()
    client.force_login(owner)
    return client.cookies["sessionid"].value


@contextmanager
def serving(home: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "LABAPEX_RUNNER_COMMAND": '["/bin/false"]'}  # nothing is run here
    command = [sys.executable, "manage.py", "serve", "--no-pipeline", "--port", str(port)]
    with (home / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.TransportError:
                if server.poll() is not None:
                    raise SystemExit((home / "serve.log").read_text()) from None
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


# -- following --------------------------------------------------------------------------------------------------------


async def watcher(url: str, job: Any, session: str, seen: list[tuple[int, float]], ready: asyncio.Event) -> None:
    """One more page's socket, from where the run is now."""
    address = f"{url.replace('http', 'ws', 1)}/live/jobs/{job}/"
    async with connect(
        address, additional_headers={"Cookie": f"sessionid={session}", "Origin": url}, max_size=None, compression=None
    ) as line:
        async for text in line:
            events = json.loads(text)
            seen.append((events["first"] + len(events["losses"]), time.time()))
            ready.set()


async def following(url: str, session: str, page: Page, prepared: dict[str, Any], every: float) -> dict[str, Any]:
    from tests.labapex_server.gateway.agent import Agent

    from labapex.protocol.frames import Open

    run: Run = prepared["watched"]
    job = run.lease.job_id
    frames = run.executable.frames[prepared["start"] : -1]
    others: list[list[tuple[int, float]]] = [[] for _ in range(VIEWERS - 1)]
    readies = [asyncio.Event() for _ in others]
    tasks = [asyncio.create_task(watcher(url, job, session, *pair)) for pair in zip(others, readies, strict=True)]
    await asyncio.gather(*(ready.wait() for ready in readies))
    await page.goto(f"{url}/jobs/{job}/")
    await page.locator(drawn(frames[0].first)).wait_for()
    await page.evaluate(STAMPS)
    sent: list[tuple[int, float]] = []
    acknowledged: list[float] = []
    async with Agent(url, run.host, leases=(run.lease.pk,)) as agent:
        await agent.say(Open(lease=run.lease.pk))
        for frame in frames:
            began = time.time()
            await agent.say(frame)
            await agent.acknowledged(frame)
            acknowledged.append(time.time() - began)
            sent.append((frame.first + frame.n, began))
            await asyncio.sleep(max(0, began + every - time.time()))
        await page.locator(drawn(sent[-1][0])).wait_for()
        await asyncio.sleep(0.5)
    stamps = await page.evaluate("window.stamps")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(seen[-1][0] == sent[-1][0] for seen in others), "a viewer missed the end"
    screen, floor = spread(delays(sent, stamps)), spread(acknowledged)
    return {
        "frames": len(sent),
        "viewers": VIEWERS,
        "acknowledged_ms": floor,
        "on_screen_ms": screen,
        "other_viewers_ms": spread([each for seen in others for each in delays(sent, seen)]),
        "screen_over_acknowledgement": round(screen["p95"] / floor["p95"], 1),
    }


def delays(sent: list[tuple[int, float]], seen: list[Any]) -> list[float]:
    """From sending what ends at a point to the first news that reach so far."""
    found, at = [], 0
    for points, began in sent:
        while seen[at][0] < points or seen[at][1] < began:
            at += 1
        found.append(seen[at][1] - began)
    return found


# -- opening ----------------------------------------------------------------------------------------------------------


async def opening(url: str, page: Page, path: str, complete: str, times: int) -> dict[str, Any]:
    """From the address to what is `complete`, in a browser whose cache is warm; and the bytes of a first visit."""
    weight = {"bytes": 0}

    async def count(response: Any) -> None:
        weight["bytes"] += len(await response.body())

    def listen(line: Any) -> None:
        line.on("framereceived", lambda data: weight.update(bytes=weight["bytes"] + len(data)))

    page.on("response", count)
    page.on("websocket", listen)
    await page.goto(url + path)
    await page.locator(complete).wait_for()
    first = weight["bytes"]
    page.remove_listener("response", count)
    page.remove_listener("websocket", listen)
    seconds = []
    for _ in range(times):
        await page.goto("about:blank")
        began = time.perf_counter()
        await page.goto(url + path)
        await page.locator(complete).wait_for()
        await page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        seconds.append(time.perf_counter() - began)
    return {"ms": spread(seconds), "bytes": first}


async def asking(client: httpx.AsyncClient, path: str, times: int) -> dict[str, Any]:
    seconds, size = [], 0
    for _ in range(times):
        began = time.perf_counter()
        reply = await client.get(path)
        seconds.append(time.perf_counter() - began)
        assert reply.status_code == 200, (path, reply.status_code)
        size = len(reply.content)
    return {"ms": spread(seconds), "bytes": size}


def every_point(job: Any) -> dict[str, Any]:
    """What a chart that asks for everything would cost: all points read, and written out."""
    from labapex_server.marketplace.models import Lease
    from labapex_server.telemetry import charts

    began = time.perf_counter()
    text = json.dumps(charts.losses(Lease.objects.get(job=job)))
    return {"ms": round(1000 * (time.perf_counter() - began), 1), "bytes": len(text)}


async def measure(url: str, session: str, prepared: dict[str, Any], options: Any) -> dict[str, Any]:
    times = 3 if options.quick else 10
    async with (
        async_playwright() as playwright,
        httpx.AsyncClient(base_url=url, cookies={"sessionid": session}) as client,
    ):
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        context = await browser.new_context(viewport={"width": 1280, "height": 900})
        await context.add_cookies([{"name": "sessionid", "value": session, "url": url}])
        page = await context.new_page()
        nothing = await asking(client, "/healthz", 5 * times)
        points = options.points
        result = {
            "healthz": nothing,
            "list_request": await asking(client, "/jobs/", times),
            "list": await opening(url, page, "/jobs/", "#jobs tbody tr:nth-child(50)", times),
            "live_page": await opening(
                url, page, f"/jobs/{prepared['opened']}/", drawn(points), times
            ),
            "chart": await asking(client, f"/jobs/{prepared['longest']}/chart/", times),
            "chart_part": await asking(
                client, f"/jobs/{prepared['longest']}/chart/?first=100000&stop=130000", times
            ) if options.most > 130_000 else None,
            "following": await following(url, session, page, prepared, 0.1),
        }  # fmt: skip
        await browser.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--points", type=int, default=0, help="of each run")
    parser.add_argument("--most", type=int, default=0, help="points of the longest run")
    parser.add_argument("--database-url", default="")
    options = parser.parse_args()
    usual = (52, 20_000, 200_000, 40) if options.quick else (100, 100_000, 1_000_000, 300)
    options.runs, options.points, options.most = (
        options.runs or usual[0], options.points or usual[1], options.most or usual[2],
    )  # fmt: skip
    sys.path[:0] = [str(ROOT / folder) for folder in (".", "client_sdk", "worker_agent", "platform")]
    os.environ["DJANGO_SETTINGS_MODULE"] = "labapex_server.settings"
    with tempfile.TemporaryDirectory(prefix="labapex-bench-") as folder:
        home = Path(folder)
        os.environ.update(LABAPEX_HOME=f"{home}/platform", LABAPEX_DATABASE_URL=options.database_url)
        os.environ["LABAPEX_LEASE_SECONDS"] = "86400"
        import django

        django.setup()
        logging.getLogger("httpx").setLevel(logging.WARNING)
        from django.conf import settings
        from django.db import connection
        from tests.labapex_server.gateway.stage import a_runner

        holder = SimpleNamespace(LABAPEX=settings.LABAPEX)
        a_runner(holder, home / "runner")
        settings.LABAPEX = holder.LABAPEX
        prepared = prepare(options.runs, options.points, options.most, usual[3])
        session = cookie(prepared["owner"])
        baseline = every_point(prepared["longest"])
        with serving(home) as url:
            found = asyncio.run(measure(url, session, prepared, options))
        result = {
            "database": connection.vendor, "runs": options.runs, "points": options.points, "most": options.most,
            "every_point": baseline, **found,
            "chart_times_faster": round(baseline["ms"] / found["chart"]["ms"]["p50"], 1),
        }  # fmt: skip
    idle = found["healthz"]["ms"]["p50"]
    for name, words in (
        ("healthz", "a request that does nothing"),
        ("list_request", "the list of jobs, the request"),
        ("list", "the list of jobs, in the browser"),
        ("live_page", f"the live page of {options.points:,} points, in the browser"),
        ("chart", f"the loss of {options.most:,} points, drawn by the server"),
        ("chart_part", "a part of it, zoomed in"),
    ):
        if row := found[name]:
            print(
                f"{words:>58}: p50 {row['ms']['p50']:>7.1f} ms, p95 {row['ms']['p95']:>7.1f}"
                f" ({row['ms']['p50'] / idle:>6.1f} x nothing), {row['bytes']:>9,} bytes"
            )
    print(f"{'all of its points, read and written out':>58}: {baseline['ms']:>11.1f} ms, {baseline['bytes']:,} bytes")
    follow = found["following"]
    print(
        f"{f'a new point on the screen, {VIEWERS} viewers':>58}: p50 {follow['on_screen_ms']['p50']:>7.1f} ms,"
        f" p95 {follow['on_screen_ms']['p95']:>7.1f} ({follow['screen_over_acknowledgement']} x its acknowledgement);"
        f" the other viewers p95 {follow['other_viewers_ms']['p95']:.1f} ms"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
