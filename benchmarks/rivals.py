"""Tracking servers of others, each in a virtual environment of its own under `build/bench`, and what they store a second.

They are spoken to as their own clients do, over HTTP on kept connections, with bodies that are written out beforehand, so
that their clients' cost does not count. What was acknowledged is read back through the same API.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from stand import ROOT, Cost, backend_cpu, end, free_port, own_database, wait_for

VENVS = ROOT / "build" / "bench"


def environment(name: str, packages: list[str]) -> Path:
    """The `bin` folder of a virtual environment with these packages; made at the first run, by name."""
    venv = VENVS / name
    if not (venv / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        (venv / ".complete").touch()
    return venv / "bin"


def version(name: str, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    said = subprocess.run([VENVS / name / "bin" / "python", "-c", code], check=True, capture_output=True, text=True)
    return said.stdout.strip()


class Rival(Protocol):
    """A server that runs, and how to speak to it."""

    name: str
    port: int
    pid: int
    database: str  # PostgreSQL's, whose processes count too; empty: none

    def new_run(self) -> str: ...
    def body(self, run: str, first: int, count: int) -> tuple[str, dict[str, str], bytes]: ...
    def stored(self, run: str) -> int: ...


@dataclass
class Server:
    """What all of them share."""

    name: str
    port: int
    pid: int
    database: str = ""

    def call(self, method: str, path: str, document: Any = None, headers: dict[str, str] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body = None if document is None else json.dumps(document).encode()
            connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                raise SystemExit(f"{self.name}: {answer.status} {said[:500]!r}")
            return json.loads(said)
        finally:
            connection.close()


class MLflow(Server):
    api = "/api/2.0/mlflow"

    def new_run(self) -> str:
        run = self.call("POST", f"{self.api}/runs/create", {"experiment_id": "0", "run_name": uuid.uuid4().hex})
        return str(run["run"]["info"]["run_id"])

    def body(self, run: str, first: int, count: int) -> tuple[str, dict[str, str], bytes]:
        metrics = [
            {"key": "loss", "value": 1 / (1 + step), "timestamp": 1_700_000_000_000 + step, "step": step}
            for step in range(first, first + count)
        ]
        return f"{self.api}/runs/log-batch", {}, json.dumps({"run_id": run, "metrics": metrics}).encode()

    def stored(self, run: str) -> int:
        path, found, token = f"{self.api}/metrics/get-history?run_id={run}&metric_key=loss&max_results=25000", 0, ""
        while True:
            page = self.call("GET", path + (f"&page_token={token}" if token else ""))
            found += len(page.get("metrics", ()))
            token = page.get("next_page_token", "")
            if not token:
                return found


class Trackio(Server):
    token = ""

    def new_run(self) -> str:
        return uuid.uuid4().hex

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Trackio-Write-Token": self.token}

    def body(self, run: str, first: int, count: int) -> tuple[str, dict[str, str], bytes]:
        logs = [
            {"project": "bench", "run": run, "run_id": run, "metrics": {"loss": 1 / (1 + step)}, "step": step,
             "config": None, "log_id": f"{run}-{step}"}
            for step in range(first, first + count)
        ]  # fmt: skip
        return (
            "/api/bulk_log",
            self.headers,
            json.dumps({"args": [], "kwargs": {"logs": logs, "hf_token": None}}).encode(),
        )

    def stored(self, run: str) -> int:
        count = f"SELECT count(DISTINCT step) AS n FROM metrics WHERE run_id = '{run}'"
        question = {"args": [], "kwargs": {"project": "bench", "query": count}}
        return int(self.call("POST", "/api/query_project", question, self.headers)["data"]["rows"][0]["n"])


@contextmanager
def mlflow(folder: Path, database_url: str = "") -> Iterator[MLflow]:
    """MLflow's tracking server as its command starts it, on SQLite or on PostgreSQL."""
    program = environment("mlflow", ["mlflow", "psycopg2-binary"]) / "mlflow"
    with own_database(database_url, "mlflow") as url:
        store = url.replace("postgresql://", "postgresql+psycopg2://") if url else f"sqlite:///{folder}/mlflow.sqlite3"
        port = free_port()
        command = [str(program), "server", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", store]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        with _running(command, folder, f"http://127.0.0.1:{port}/health", {}) as pid:
            yield MLflow(f"mlflow {version('mlflow', 'mlflow')}", port, pid, urlsplit(url).path.lstrip("/"))


@contextmanager
def trackio(folder: Path) -> Iterator[Trackio]:
    """Trackio's server as `trackio.show` starts it; it stores in SQLite."""
    program = environment("trackio", ["trackio"]) / "python"
    port = free_port()
    code = f"import trackio; trackio.show(open_browser=False, block_thread=True, host='127.0.0.1', server_port={port})"
    own = {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    with _running([str(program), "-u", "-c", code], folder, f"http://127.0.0.1:{port}/version", own) as pid:
        server = Trackio(f"trackio {version('trackio', 'trackio')}", port, pid)
        server.token = _token(folder / "server.log")
        yield server


def _token(log: Path) -> str:
    deadline = time.monotonic() + 20
    while (found := re.search(r"write_token=([\w-]+)", log.read_text())) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"trackio shows no write token:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    return found[1]


@contextmanager
def _running(command: list[str], folder: Path, url: str, own: dict[str, str]) -> Iterator[int]:
    log = folder / "server.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LABAPEX", "DJANGO"))}
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=folder, env=clean | own, stdout=file, stderr=file)
    try:
        wait_for(url, process, log)
        yield process.pid
    finally:
        end(process)


def settle(rival: Rival) -> None:
    """Let all of a server's processes do what they do once, and wait until they are quiet."""
    measure(rival, 8, 10, 10)
    for _ in range(30):
        before = _cpu(rival)
        time.sleep(1)
        if _cpu(rival) - before < 0.05:
            return


def measure(rival: Rival, clients: int, batch: int, batches: int) -> dict[str, float]:
    """Each client sends so many batches, one after the other; all of them at once."""
    runs = [rival.new_run() for _ in range(clients)]
    bodies = [[rival.body(run, number * batch, batch) for number in range(1, batches + 1)] for run in runs]
    first = [rival.body(run, 0, batch) for run in runs]  # of each run, before the clock starts
    ready = threading.Barrier(clients + 1)
    failures: list[str] = []
    latencies: list[float] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", rival.port, timeout=120)

        def send(path: str, headers: dict[str, str], body: bytes) -> None:
            connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200 or b'"error"' in said:
                raise RuntimeError(f"{answer.status} {said[:300]!r}")

        try:
            send(*first[number])
            ready.wait()
            for each in bodies[number]:
                begin = time.perf_counter()
                send(*each)
                latencies.append(time.perf_counter() - begin)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failures.append(str(error))
            ready.abort()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    before, wall = _cpu(rival), time.perf_counter()
    for thread in threads:
        thread.join()
    wall, after = time.perf_counter() - wall, _cpu(rival)
    if failures:
        raise SystemExit(f"{rival.name}: {failures[0]}")
    sent = clients * batch * (batches + 1)
    stored = sum(rival.stored(run) for run in runs)
    points = clients * batch * batches
    return {
        "points": points,
        "points_per_second": round(points / wall),
        "server_cpu_us_per_point": round(1e6 * (after - before) / points, 2),
        "acknowledged": sent,
        "stored": stored,
        "p99_ms": round(1e3 * sorted(latencies)[int(0.99 * (len(latencies) - 1))], 1),
    }


def _cpu(rival: Rival) -> float:
    return Cost.of(rival.pid).cpu + (backend_cpu(rival.database) if rival.database else 0)
