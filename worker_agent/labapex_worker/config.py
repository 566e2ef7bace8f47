"""What a worker remembers of its enrolment, and where its files lie.

HOME/                       0700
  config.json               platform, worker id, pinned manifest key, what jobs may see
  key                       0600, the worker's Ed25519 key
  state.sqlite3             leases and the spool of their logs
  jobs/<lease>/             one lease; nothing here but `job` and `door` can be seen from inside the sandbox
    executable              verified, read-only in the sandbox
    door/agent.sock         the job's only way out, read-only in the sandbox
    job/                    the job folder: its working directory, the only thing it can write
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

from labapex.errors import MalformedInput, UsageError
from labapex.protocol.canonical import Message, parse

HOME_SETTING = "LABAPEX_WORKER_HOME"


class Config(Message):
    """The worker's settings. The owner may edit the file; sizes are in bytes."""

    platform: str
    worker: UUID
    name: str
    manifest_key: bytes = Field(min_length=32, max_length=32)
    site_packages: tuple[Path, ...]  # of the Python installation that has torch
    read_only: tuple[Path, ...] = ()  # further paths that jobs may read, a CUDA toolkit for instance
    spool_bytes: int = Field(default=1 << 30, gt=0)  # when that much log waits for the platform, jobs hold theirs back
    executable_bytes: int = Field(default=64 << 30, gt=0)
    memory_bytes: int | None = None  # data of one process of a job
    file_bytes: int | None = None
    processes: int | None = Field(default=4096, gt=0)


class Home:
    """A worker's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @classmethod
    def choose(cls, path: Path | None) -> Home:
        """The given folder, else `LABAPEX_WORKER_HOME`, else the user's data folder."""
        return cls(path or Path(os.environ.get(HOME_SETTING) or platformdirs.user_data_dir("labapex-worker")))

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def key(self) -> Path:
        return self.path / "key"

    @property
    def database(self) -> Path:
        return self.path / "state.sqlite3"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def lease(self, lease: UUID) -> Path:
        return self.path / "jobs" / lease.hex

    def create(self) -> None:
        """Make the folder, closed to others."""
        for folder in (self.path, self.path / "jobs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def load(self) -> Config:
        try:
            return parse(Config, self.config.read_bytes(), limit=1 << 20)
        except FileNotFoundError:
            raise UsageError(
                f"no worker is enrolled in {self.path}; run: labapex-worker enrol CODE --platform URL --name NAME"
            ) from None
        except MalformedInput as error:
            raise UsageError(f"{self.config} cannot be used: {error}") from None

    def save(self, config: Config) -> None:
        part = self.config.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_text(config.model_dump_json(indent=2) + "\n")
        part.replace(self.config)


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
