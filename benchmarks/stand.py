"""A platform on this machine with running leases, for benchmarks: the real `manage.py serve` as a process of its own.

Jobs, leases and keys come into being through the real services, in this process, on the same database. What the host would
do is played: frames are made from invented losses and sealed as an executable seals them, each with a reading of the device
and a line of console.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psutil

if TYPE_CHECKING:
    from tests.labapex_server.gateway.stage import Run

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0
EPOCHS_LEAVES = 4  # leaves an epoch


@dataclass
class Cost:
    """What a process and its children have used."""

    cpu: float  # seconds
    rss: int  # bytes

    @classmethod
    def of(cls, pid: int) -> Cost:
        root = psutil.Process(pid)
        cpu, rss = 0.0, 0
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu += times.user + times.system
                rss += process.memory_info().rss
        return cls(cpu, rss)


def backend_cpu(database: str) -> float:
    """CPU seconds of PostgreSQL's processes that serve this database now, where they are to be seen from here."""
    total = 0.0
    for process in psutil.process_iter(["cmdline"]):
        if f" {database} " in " ".join(process.info["cmdline"] or ()):
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer: {error}\n{log.read_text()[-3000:]}") from None
            time.sleep(0.1)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Stand:
    """One platform's folder, database and runs. Made by `standing`; `serving` starts the process."""

    def __init__(self, home: Path, database: str) -> None:
        self.home, self.database = home, database
        self.port = free_port()
        self.pid = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """The database's, as PostgreSQL's processes are called by."""
        return urlsplit(self.database).path.lstrip("/")

    def cost(self) -> Cost:
        return Cost.of(self.pid)

    @contextmanager
    def serving(self) -> Iterator[None]:
        log = self.home / "serve.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "serve", "--no-pipeline", "--port", str(self.port)],
                env={**os.environ, "LABAPEX_RUNNER_COMMAND": '["/bin/true"]', "LABAPEX_LEASE_SECONDS": "3600"},
                stdout=file,
                stderr=file,
            )
        try:
            wait_for(f"{self.url}/healthz", process, log)
            self.pid = process.pid
            yield
        finally:
            end(process)

    def runs(self, count: int, *, records: int, frames: int) -> list[Run]:
        """So many hosts with a run each, whose log is `frames` frames of `records` losses (and one with the last leaf)."""
        from tests.labapex_server.gateway.stage import a_host, a_run, queued_job

        from labapex_server.accounts import services as accounts
        from labapex_server.ledger import services as ledger

        owner = accounts.create_user(f"bench-{uuid.uuid4().hex[:12]}", password="a long password for the bench")
        ledger.top_up(ledger.account_of(owner), amount=10**12, memo="bench")
        length, made = records * frames, []
        for number in range(count):
            job = queued_job(owner, epochs=1, per_epoch=length, every=max(1, -(-length // EPOCHS_LEAVES)))
            made.append(a_run(job, a_host(owner, f"host {number}"), frame_losses=records))
        return made


@contextmanager
def standing(database_url: str = "") -> Iterator[Stand]:
    """A platform's folder and database, migrated, and this process set up to work on it. Once in a process."""
    sys.path[:0] = [str(ROOT / folder) for folder in (".", "client_sdk", "worker_agent", "platform")]
    with tempfile.TemporaryDirectory(prefix="labapex-bench-") as folder, own_database(database_url, "bench") as url:
        home = Path(folder)
        os.environ.update(
            DJANGO_SETTINGS_MODULE="labapex_server.settings",
            LABAPEX_HOME=str(home / "platform"),
            LABAPEX_DATABASE_URL=url,
            LABAPEX_TRIAL_HOURS="0",
        )
        import django

        django.setup()
        from django.conf import settings
        from django.core.management import call_command
        from django.db import connections
        from tests.labapex_server.gateway.stage import a_runner

        try:
            call_command("migrate", verbosity=0, interactive=False)
            holder = SimpleNamespace(LABAPEX=settings.LABAPEX)
            a_runner(holder, home / "runner")
            settings.LABAPEX = holder.LABAPEX
            yield Stand(home, url)
        finally:
            connections.close_all()


@contextmanager
def own_database(server: str, name: str) -> Iterator[str]:
    """The URL of a database that is made on this PostgreSQL server and dropped again; empty where `server` is."""
    if not server:
        yield ""
        return
    import psycopg
    from psycopg import sql

    own = sql.Identifier(f"labapex_{name}_{os.getpid()}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(own))
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/labapex_{name}_{os.getpid()}"))
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(own))
