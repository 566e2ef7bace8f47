"""Points a second that are stored and acknowledged over a socket, and what each costs: `make bench-ingest`.

A point is one loss with its step and time. Lab Apex gets it as its workers send it: in sealed frames over the authenticated
connection, each checked (own hash, chain, count, leaves), decrypted, committed, then acknowledged. MLflow's tracking server
and trackio's get theirs by HTTP, as their clients send it. All servers are started in turn, with their own usual settings,
in this one run; what was acknowledged is read back from each.

A Lab Apex worker does not wait for one acknowledgement before it sends on, so it has up to 64 frames under way; rows marked
"one at a time" show it without that, as the HTTP clients work. CPU is that of the server's processes and, for PostgreSQL,
of its processes that serve them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rivals
from stand import Stand, backend_cpu, standing

if TYPE_CHECKING:
    from tests.labapex_server.gateway.stage import Run

BATCHES = (1, 100, 1000)
FRAMES = {1: 1000, 100: 600, 1000: 150}  # a client; below the rate at which a connection is slowed down
HTTP_BATCHES = {1: 100, 100: 30, 1000: 8}
WINDOW = 64


async def delivered(stand: Stand, runs: list[Run], *, window: int = WINDOW, every: float = 0) -> dict[str, Any]:
    """All logs of these runs, each over its own connection, at once."""
    from agents import connected, percentile

    from labapex_server.telemetry.models import Frame, Log

    async with connected(stand.url, runs) as agents:
        await asyncio.gather(*(agent.deliver(stop=1) for agent in agents))  # the platform looks each lease up once
        for agent in agents:
            agent.latencies.clear()
        before, database, wall = stand.cost(), backend_cpu(stand.name) if stand.name else 0.0, time.perf_counter()
        await asyncio.gather(*(agent.deliver(window=window, start=1, every=every) for agent in agents))
        wall = time.perf_counter() - wall
        after = stand.cost()
        database = (backend_cpu(stand.name) if stand.name else 0.0) - database
    latencies = [seconds for agent in agents for seconds in agent.latencies]
    leases = [run.lease.pk for run in runs]
    frames = sum(len(agent.messages) for agent in agents)
    sent = sum(len(run.executable.losses) for run in runs)
    points = sum(frame.n for run in runs for frame in run.executable.frames[1:])

    def stored() -> int:
        from django.db.models import Sum

        assert Frame.objects.filter(log__in=leases).count() == frames, "an acknowledged frame is missing or doubled"
        return int(Log.objects.filter(pk__in=leases).aggregate(n=Sum("next"))["n"])

    return {
        "points": points,
        "points_per_second": round(points / wall),
        "server_cpu_us_per_point": round(1e6 * (after.cpu - before.cpu + database) / points, 2),
        "server_cpu_us_per_frame": round(1e6 * (after.cpu - before.cpu + database) / (frames - len(agents)), 1),
        "acknowledged": sent,
        "stored": await asyncio.to_thread(stored),
        "p50_ms": round(1e3 * percentile(latencies, 0.5), 1),
        "p99_ms": round(1e3 * percentile(latencies, 0.99), 1),
    }


def lab_apex(database: str, clients: list[int], *, crowd: int) -> list[dict[str, Any]]:
    """The rows of one database, in this process: it can be set up for one only."""
    rows = []

    def row(name: str, clients: int, batch: int, result: dict[str, Any]) -> None:
        rows.append(
            {
                "server": f"Lab Apex, {'PostgreSQL' if database else 'SQLite'}{name}",
                "clients": clients,
                "batch": batch,
                **result,
            }
        )
        show(rows[-1])

    with standing(database) as stand, stand.serving():
        asyncio.run(delivered(stand, stand.runs(1, records=50, frames=50)))  # imports and caches
        for number in clients:
            for batch in BATCHES:
                runs = stand.runs(number, records=batch, frames=FRAMES[batch])
                row("", number, batch, asyncio.run(delivered(stand, runs)))
        runs = stand.runs(max(clients), records=100, frames=FRAMES[100] // 4)
        row(", one at a time", max(clients), 100, asyncio.run(delivered(stand, runs, window=1)))
        if crowd:
            runs = stand.runs(crowd // 10, records=50, frames=300)
            row(", many connections", len(runs), 50, asyncio.run(delivered(stand, runs)))
            runs = stand.runs(crowd // 2, records=50, frames=12)
            row(", a frame a second each", len(runs), 50, asyncio.run(delivered(stand, runs, every=1.0)))
            runs = stand.runs(crowd, records=50, frames=20)
            row(", saturated", len(runs), 50, asyncio.run(delivered(stand, runs, window=1)))
    return rows


def others(rival: rivals.Rival, name: str, clients: list[int]) -> list[dict[str, Any]]:
    rows = []
    rivals.settle(rival)
    for number in clients:
        for batch in BATCHES:
            result = rivals.measure(rival, number, batch, HTTP_BATCHES[batch])
            rows.append({"server": name, "clients": number, "batch": batch, **result})
            show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['server']:<38} {row['clients']:>5} x {row['batch']:<5} {row['points_per_second']:>10,} points/s "
        f"{row['server_cpu_us_per_point']:>9.2f} us CPU  p99 {row['p99_ms']:>8.1f} ms  "
        f"stored {row['stored']:,} of {row['acknowledged']:,}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--database-url", default="", help="a PostgreSQL server; a database of our own is made and dropped"
    )
    parser.add_argument("--crowd", type=int, default=1000, help="connections at most; 0: leave those rows out")
    parser.add_argument("--only", choices=["labapex"], help="no other servers")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # one database, rows as JSON
    options = parser.parse_args()
    clients = [1, 4]
    if options.one:
        print(json.dumps(lab_apex(options.database_url, clients, crowd=options.crowd)))
        return
    rows: list[dict[str, Any]] = []
    for database in dict.fromkeys(["", options.database_url]):
        command = [sys.executable, __file__, "--one", "--crowd", str(options.crowd), "--database-url", database]
        rows += _rows(command)
    if options.only is None:
        with tempfile.TemporaryDirectory(prefix="labapex-bench-") as folder:
            for database in dict.fromkeys(["", options.database_url]):
                place = Path(folder) / ("sqlite" if not database else "postgresql")
                place.mkdir()
                with rivals.mlflow(place, database) as rival:
                    rows += others(rival, f"{rival.name}, {'PostgreSQL' if database else 'SQLite'}", clients)
            with rivals.trackio(Path(folder)) as rival:
                rows += others(rival, f"{rival.name}, SQLite", clients)
    wrong = [row for row in rows if row["stored"] != row["acknowledged"]]
    result: dict[str, Any] = {"rows": rows, "not_stored": len(wrong)}
    if options.only is None:
        result["times_mlflow"] = {
            f"{ours['clients']} x {ours['batch']}": round(ours["points_per_second"] / theirs["points_per_second"])
            for ours in rows
            for theirs in rows
            if ours["server"] == "Lab Apex, SQLite"
            and theirs["server"].startswith("mlflow")
            and theirs["server"].endswith("SQLite")
            and (ours["clients"], ours["batch"]) == (theirs["clients"], theirs["batch"])
        }
    print(json.dumps(result))


def _rows(command: list[str]) -> list[dict[str, Any]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    if process.returncode:
        raise SystemExit(process.returncode)
    found: list[dict[str, Any]] = json.loads(last)
    return found


if __name__ == "__main__":
    main()
