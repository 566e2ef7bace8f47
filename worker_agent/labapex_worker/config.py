"""What a worker remembers of its enrolment, and where its files lie.

HOME/                       0700
  config.json               platform, worker id, pinned root key, what jobs may see, the owner's limits
  wish                      `pause` or `drain`, where the owner wants that
  control.sock              0600, how the owner's commands reach the running daemon
  key                       0600, the worker's Ed25519 key
  trust.json                the newest of the platform's trust documents, and the newest releases that were seen
  state.sqlite3             leases and the spool of their logs
  torch.json                the torch that the platform supplied last, where this host has none
  environments/             packages of jobs, see labapex.environments; what jobs of before used stays for the next
  jobs/<lease>/             one lease; nothing here but `job` and `door` can be seen from inside the sandbox
    wheels/                 the job's packages on their way into `environments`
    executable              verified, read-only in the sandbox
    state.part              the state with which the run goes on, while it is fetched; then it lies in `job/states/`
    door/agent.sock         the job's only way out, read-only in the sandbox
    job/                    the job folder: its working directory, the only thing it can write. Where they fit, its
                            `work/` and `tmp/` are mounted from memory inside, and empty here
    again/                  likewise `job/` and a journal, of the run that makes states anew
    pid exit output lock    the journal of the run
"""

from __future__ import annotations

import ipaddress
import os
import sysconfig
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import platformdirs
from pydantic import Field

from labapex import durable
from labapex.errors import MalformedInput, UsageError
from labapex.protocol.canonical import Message, parse
from labapex_worker.limits import Limits

HOME_SETTING = "LABAPEX_WORKER_HOME"
SYSTEM_HOME = Path("/var/lib/labapex-worker")  # of a worker that is installed for the whole system


class Config(Message):
    """The worker's settings. The owner may edit the file; sizes are in bytes."""

    platform: str
    worker: UUID
    name: str
    root: bytes = Field(min_length=32, max_length=32)  # Ed25519, pinned: what the platform sends rests on it
    site_packages: tuple[Path, ...]  # of the Python installation that has torch; without it jobs bring the platform's
    read_only: tuple[Path, ...] = ()  # further paths that jobs may read, a CUDA toolkit for instance
    updates: bool = True  # take what the platform releases of the agent, between two jobs
    spool_bytes: int = Field(default=1 << 30, gt=0)  # when that much log waits for the platform, jobs hold theirs back
    executable_bytes: int = Field(default=64 << 30, gt=0)
    environment_bytes: int = Field(default=20 << 30, gt=0)  # unpacked packages of jobs; the oldest make room
    total_memory_bytes: int | None = Field(
        default=None, gt=0
    )  # of all processes of a job; None: nine tenths of what the host has
    private_bytes: int | None = Field(default=None, ge=0)  # memory for a job's files; None: a quarter of nine tenths
    disk_bytes: int = Field(default=256 << 30, gt=0)  # all files of a job
    processes: int | None = Field(default=4096, gt=0)
    limits: Limits = Limits()


class Home:
    """A worker's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @classmethod
    def choose(cls, path: Path | None) -> Home:
        """The given folder, else `LABAPEX_WORKER_HOME`, else for root that of the installed worker, else the user's own."""
        named = path or os.environ.get(HOME_SETTING)
        if not named and os.geteuid() == 0 and SYSTEM_HOME.is_dir():
            return cls(SYSTEM_HOME)
        return cls(Path(named or platformdirs.user_data_dir("labapex-worker")))

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def key(self) -> Path:
        return self.path / "key"

    @property
    def trust(self) -> Path:
        return self.path / "trust.json"

    @property
    def database(self) -> Path:
        return self.path / "state.sqlite3"

    @property
    def wish(self) -> Path:
        return self.path / "wish"

    @property
    def control(self) -> Path:
        return self.path / "control.sock"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def environments(self) -> Path:
        return self.path / "environments"

    @property
    def torch(self) -> Path:
        return self.path / "torch.json"

    def lease(self, lease: UUID) -> Path:
        return self.path / "jobs" / lease.hex

    def create(self) -> None:
        """Make the folder, closed to others."""
        for folder in (self.path, self.path / "jobs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        durable.sync(self.path.parent)

    def load(self) -> Config:
        try:
            return parse(Config, self.config.read_bytes(), limit=1 << 20)
        except FileNotFoundError:
            raise UsageError(
                f"no worker is enrolled in {self.path}; run: labapex-worker enrol CODE --platform URL --name NAME"
                + (" (or sudo, for the one that is installed here)" if SYSTEM_HOME.is_dir() else "")
            ) from None
        except MalformedInput as error:
            raise UsageError(f"{self.config} cannot be used: {error}") from None

    def save(self, config: Config) -> None:
        durable.write(self.config, config.model_dump_json(indent=2).encode() + b"\n")


def own_site_packages() -> tuple[Path, ...]:
    """Where the running interpreter keeps its packages."""
    paths = sysconfig.get_paths()
    return tuple(dict.fromkeys(Path(paths[name]) for name in ("purelib", "platlib")))


def platform_url(url: str, *, insecure: bool = False) -> str:
    """The platform's address, no closing slash; raises `UsageError` for one that would send tokens in the clear."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise UsageError(f"'{url}' is no address of a platform; an example: https://apex.example.org")
    if parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname):
        raise UsageError(f"'{url}' is not encrypted; use https, or --insecure in a network that you trust")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
