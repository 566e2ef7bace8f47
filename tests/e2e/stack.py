"""A whole marketplace of real processes below one folder: platform, pipeline, workers, and a client's shell.

Tests look from outside: at what the command line says, what the SDK is told, and what lies on the disks. They may do to
the processes what a machine does to them: kill, stop, start again. Nothing here waits for a time to pass, only for
conditions, and gives up with the logs in hand.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx

from labapex import sandbox
from labapex.client import Client
from labapex.protocol.api import JobView
from labapex_worker import journal

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "tests" / "attacks" / "host.py"
PATIENCE = 180.0  # seconds; for a machine that does other things as well
LOOK_SECONDS = 0.2  # between two looks: a look at a job costs its platform 12 ms of CPU, and others wait for that
_T = TypeVar("_T")


def program(name: str) -> str:
    """A command of the environment that runs the tests."""
    return str(Path(sys.executable).with_name(name))


class Process:
    """A program with a log, in a process group of its own, that can be killed and started again."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path, cwd: Path) -> None:
        self.command, self.environment, self.log, self.cwd = list(command), environment, log, cwd
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._running is None
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """`kill -9` of the program and of its own helpers; nothing happens where it does not run."""
        if self._running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()
            self._running = None

    def stop(self) -> None:
        """Take its time away without telling it: it falls silent, and is not dead."""
        assert self._running is not None
        os.killpg(self._running.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Give a stopped program its time back."""
        assert self._running is not None
        os.killpg(self._running.pid, signal.SIGCONT)

    @property
    def ended(self) -> bool:
        return self._running is not None and self._running.poll() is not None


class Worker(Process):
    """A host. Its executables outlive the daemon, as they must; `end` is the machine being switched off."""

    def __init__(
        self, home: Path, environment: dict[str, str], log: Path, *, cheat: str = "", once: bool = False
    ) -> None:
        host = [sys.executable, str(HOST), cheat] if cheat else [program("labapex-worker")]
        command = [*host, "run", "--home", str(home), *(["--once"] if once else [])]
        super().__init__(command, environment, log, ROOT)
        self.home = home

    def leases(self) -> list[UUID]:
        """Leases that this host has files of."""
        return [UUID(path.name) for path in (self.home / "jobs").iterdir()]

    def executable(self, lease: UUID) -> Path:
        return self.home / "jobs" / lease.hex / "executable"

    def kill_executable(self, lease: UUID) -> None:
        """`kill -9` of a job's supervisor and of all it started; the daemon goes on."""
        journal.kill(self.home / "jobs" / lease.hex)

    def end(self) -> None:
        self.kill()
        for lease in self.leases():
            self.kill_executable(lease)


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON that ends stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found

    @property
    def error(self) -> str:
        """The one line that says what went wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")


class Command:
    """A command that runs in the background."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait(self) -> Said:
        try:
            out, err = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, err = self._process.communicate()
            raise AssertionError(f"the command did not end; it said:\n{out}\n{err}") from None
        return Said(self._process.returncode, out, err)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class Stack:
    """`settings` are the platform's; with `pipeline` Celery is a program of its own, as it is on a real broker."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None, pipeline: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.verify: bool | ssl.SSLContext = True  # whose certificates are believed
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("LABAPEX_")}
        self._environment |= {"HOME": str(folder), "COLUMNS": "200"}
        if sandbox.available() is not None:
            self._environment[sandbox.UNCONFINED_SETTING] = "1"
        environment = self._environment | {
            "DJANGO_SETTINGS_MODULE": "labapex_server.settings",
            "LABAPEX_HOME": str(folder / "platform"),
            "LABAPEX_PUBLIC_URL": self.url,
            "LABAPEX_HEARTBEAT_SECONDS": "1",
            "LABAPEX_TRIAL_HOURS": "0",
            "LABAPEX_LEASE_SECONDS": "8",
            "LABAPEX_SWEEP_SECONDS": "0.5",
            "LABAPEX_RING_SECONDS": "3",
            **(settings or {}),
        }
        serve = [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(self.port)]
        self.platform = Process(serve, environment, folder / "platform.log", ROOT)
        celery = [sys.executable, "-m", "celery", "-A", "labapex_server", "worker", "-B", "-c", "1", "-l", "warning"]
        self.pipeline = Process(celery, environment, folder / "pipeline.log", folder) if pipeline else None
        self.workers: list[Worker] = []
        self._commands: list[Command] = []

    # -- from the first start to the end -------------------------------------------------------------------------------

    def start(self) -> None:
        self.serve()
        if self.pipeline is not None:
            self.pipeline.start()
        name, password = (self.folder / "platform" / "first-login").read_text().split()
        self.client = Client(self.url, "unused")
        self._environment |= {"LABAPEX_URL": self.url, "LABAPEX_TOKEN": self.client.login(name, password).token}
        self.owner = Client(self.url, "unused")
        self.owner.login("landlord", self._sign_up("landlord"))

    def serve(self) -> None:
        """Start the platform, for the first time or again on the same port; it answers when this returns."""
        self.platform.start()
        self.until("the platform answers", self._answers, patience=600)  # it may have to freeze the runner

    def _answers(self) -> bool:
        assert not self.platform.ended, "the platform ended"
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False, verify=self.verify).is_success
        return False

    def _sign_up(self, name: str) -> str:
        """A second person, who owns the workers: what is paid can then be seen. Signs up as people do; the password."""
        password = secrets.token_urlsafe(16)
        with httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE, verify=self.verify) as browser:
            browser.get("/signup/")
            form = {"username": name, "password1": password, "password2": password}
            form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
            assert browser.post("/signup/", data=form, headers={"Referer": self.url}).status_code == 302
        return password

    def end(self) -> None:
        for command in self._commands:
            command.end()
        for worker in self.workers:
            worker.end()
        if self.pipeline is not None:
            self.pipeline.kill()
        self.platform.kill()
        for client in ("client", "owner"):
            if hasattr(self, client):
                getattr(self, client).close()

    def logs(self, lines: int = 60) -> str:
        """The end of every program's log."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-lines:]
            parts.append(f"== {log.name}\n" + "\n".join(tail))
        return "\n".join(parts)

    # -- workers -------------------------------------------------------------------------------------------------------

    def enrol(
        self,
        name: str,
        *,
        cheat: str = "",
        once: bool = False,
        through: str | None = None,
        site_packages: Path | None = None,
    ) -> Worker:
        """A new host, enrolled, and not started yet; `once`: it is to take one job only; `through`: where
        it finds the platform; `site_packages`: where it looks for torch, else where the tests have it."""
        home = self.folder / name
        code = self.owner.enrolment_code().code
        enrol = [
            program("labapex-worker"),
            "enrol",
            code,
            "--platform",
            through or self.url,
            "--name",
            name,
            "--home",
            str(home),
            *(["--site-packages", str(site_packages)] if site_packages else []),
        ]
        subprocess.run(enrol, env=self._environment, check=True, capture_output=True)
        worker = Worker(home, self._environment, self.folder / f"{name}.log", cheat=cheat, once=once)
        self.workers.append(worker)
        return worker

    @contextmanager
    def worker(self, name: str, *, cheat: str = "", once: bool = False, through: str | None = None) -> Iterator[Worker]:
        """A host that takes jobs while the block lasts."""
        worker = self.enrol(name, cheat=cheat, once=once, through=through)
        worker.start()
        try:
            yield worker
        finally:
            worker.end()

    def manage(self, *arguments: str) -> str:
        """A command of the platform's operator; what it printed."""
        command = [sys.executable, str(ROOT / "manage.py"), *arguments]
        return subprocess.run(
            command, env=self.platform.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    # -- a client ------------------------------------------------------------------------------------------------------

    def begin(self, *arguments: str | Path, **environment: str) -> Command:
        """A command of the client, in the background."""
        command = Command(
            subprocess.Popen(
                [program("labapex"), *map(str, arguments)],
                cwd=self.folder,
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        self._commands.append(command)
        return command

    def cli(self, *arguments: str | Path, **environment: str) -> Said:
        """A command of the client, to its end."""
        return self.begin(*arguments, **environment).wait()

    def submit(self, folder: Path) -> UUID:
        """Hand in a job and do not follow it."""
        said = self.cli("run", folder, "--yes", "--detach", "--json")
        assert said.code == 0, said
        return UUID(said.summary["id"])

    def job(self, job: UUID) -> JobView:
        return self.client.job(job)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def until(self, what: str, look: Callable[[], _T | None], *, patience: float = PATIENCE) -> _T:
        """Look until there is something to be seen, and hand it back; fails with the logs when it takes too long."""
        give_up = time.monotonic() + patience
        while not (found := look()):
            if time.monotonic() > give_up:
                raise AssertionError(f"never came true: {what}\n{self.logs()}")
            time.sleep(LOOK_SECONDS)
        return found

    def until_state(self, job: UUID, *states: str) -> JobView:
        """Wait for a job to be in one of these states; one that ended in another state fails at once."""

        def look() -> JobView | None:
            view = self.job(job)
            reached = view.state.value in states
            assert reached or not view.state.ended, f"the job is {view.state}: {view.reason}\n{self.logs()}"
            return view if reached else None

        return self.until(f"the job is {' or '.join(states)}", look)

    def until_trained(self, job: UUID, iterations: int) -> JobView:
        """Wait for so many stored losses of a job that still trains."""

        def look() -> JobView | None:
            view = self.job(job)
            assert view.state.value in {"submitted", "packaging", "queued", "leased", "running"}, (
                f"too late: the job is {view.state}: {view.reason}\n{self.logs()}"
            )
            return view if view.progress.iterations >= iterations else None

        return self.until(f"{iterations} losses are stored", look)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
