"""Every setting of the platform in one typed place, read from the environment with the prefix `LABAPEX_`, or from files of
the same names in lower case in `LABAPEX_SECRETS_DIR`: what is secret need not stand in an environment.

With none set, the platform is complete on one machine: SQLite, Celery inside the process, files under `var/platform`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from labapex.errors import UsageError
from labapex.protocol.spec import CREDIT, MAX_CODE_BYTES

ROOT = Path(__file__).resolve().parents[3]


class Config(BaseSettings):
    """Paths are absolute; times are seconds; sizes are bytes; money is micro-credits."""

    model_config = SettingsConfigDict(env_prefix="LABAPEX_", extra="ignore")

    home: Path = ROOT / "var" / "platform"  # keys, blobs, opened states, SQLite
    debug: bool = False
    public_url: str = "http://127.0.0.1:8000"
    allowed_hosts: tuple[str, ...] = ()  # besides the public URL's host and this machine's loopback names
    database_url: str = ""  # postgresql://user:password@host:port/name; empty: SQLite under `home`
    broker_url: str = "memory://"  # or redis://.., amqp://..
    queue: str = "labapex"  # on the broker; platforms that share a broker need one each
    channel_url: str | None = None  # redis://..; None: within the process
    object_store_url: str = Field(
        default="", pattern=r"^(s3://[a-z0-9][a-z0-9.-]+(/[\w./-]+)?)?$"
    )  # empty: `home` is all
    object_store_endpoint: str = ""  # http(s)://..; empty: Amazon's
    object_store_region: str = ""
    object_store_key: SecretStr = SecretStr("")  # empty: as boto3 finds it
    object_store_secret: SecretStr = SecretStr("")
    object_cache_bytes: int = 50 * 2**30  # copies on this machine's disk of what the object store has

    mail_url: str = ""  # smtp://user:password@host:587 or smtps://..:465; empty: mails are printed
    mail_from: str = "Lab Apex <noreply@localhost>"

    # what a client may hand in
    data_limit_bytes: int = 2 * 2**30
    blob_limit_bytes: int = 2 * 2**30
    code_limit_bytes: int = MAX_CODE_BYTES
    result_limit_bytes: int = 4 * 2**30

    # how long it is kept: days from a job's end, 0 for ever
    evidence_days: float = Field(default=14, ge=0)  # all of a judged job, whoever asks for its deletion
    files_days: float = Field(default=30, ge=0)  # code, data and packages of ended jobs, and files that no job has
    states_days: float = Field(default=30, ge=0)  # states that a host had to show
    results_days: float = Field(default=365, ge=0)  # weights, and the log: losses, console, readings
    account_bytes: int = Field(default=50 * 2**30, ge=0)  # of one account's files; 0: no limit

    packages_limit_bytes: int = 4 * 2**30  # wheels that a job's requirements come to, and what pip loads to find them
    packages_seconds: float = 900  # to lock them

    # workers
    heartbeat_seconds: float = 5
    lease_seconds: float = 30  # of silence after which a lease is over
    lease_limit_seconds: float = 7 * 24 * 3600  # how long a manifest is valid
    audit_segments: int = Field(default=44, ge=1)  # drawn at random of a run, unless its host is trusted: then fewer
    opening_seconds: float = 600  # each round of a challenge, besides making anew what was not kept
    kept_states_gb: float = Field(default=20, gt=0)  # that a host keeps of a run; it makes the others anew when asked
    handover_seconds: float = Field(default=60, ge=0)  # of training that a lost host costs; 0: then it is begun anew
    handover_bytes_per_second: float = Field(default=1e6, gt=0)  # at most, of states that a training host hands in
    handover_gb: float = Field(default=20, gt=0)  # of such states that are kept of a job
    handover_wait_seconds: float = Field(default=3600, ge=0)  # for a host of the same class; then it is begun anew
    enrolment_seconds: float = 900
    trial_hours: float = Field(default=24, ge=0)  # between two speed trials of a worker, on average; 0: never
    start_seconds: float = 3600  # from grant to key release
    stall_seconds: float = 1800  # without a new iteration, though the worker is there; at least 50 iterations' time
    max_attempts: int = 5
    reference_price_per_hour: int = CREDIT  # for the estimate before a worker is known
    fee_basis_points: int = Field(default=0, ge=0, le=5000)  # of hosts' pay, which clients pay besides: 250 is 2.5 %
    starting_credit: int = 1000 * CREDIT  # of the first-run login

    # disputes: for `evidence_days`
    dispute_turn_seconds: float = Field(default=600, gt=0)  # of training between two states that a re-execution keeps

    # the pipeline
    sweep_seconds: float = 2
    ring_seconds: float = 30  # after which a waiting job is rung again
    claim_seconds: float = 20
    pipeline_threads: int = 2
    longest_task_seconds: float = 4 * 3600

    # running foreign code
    runner_dir: Path = ROOT / "build" / "runner"
    runner_command: tuple[str, ...] = ()  # instead of `runner_dir/runner`: the program that plays the runner in tests
    environments_bytes: int = 20 * 2**30  # unpacked packages of jobs; the ones used longest ago make room
    site_packages: str = ""  # where the runner finds torch; empty: this interpreter's
    preflight_seconds: float = 900
    replay_seconds: float = 3600
    child_memory_bytes: int | None = 16 * 2**30
    child_processes: int | None = 512
    child_file_bytes: int | None = 8 * 2**30
    child_disk_bytes: int | None = 256 * 2**30
    job_memory_bytes: int = 4 * 2**30  # of jobs that ask for nothing else; never more than those of a child
    job_disk_bytes: int = 4 * 2**30  # what a script writes, besides its files and the states that are kept
    job_processes: int = 512
    pev_percent: float = Field(default=10, gt=0, le=100)

    # alerts
    insecure_webhooks: bool = (
        False  # call http and private addresses too: for tests, and networks where nobody is a stranger
    )

    # doors
    login_rate: str = "10/min"
    api_rate: int = Field(default=3000, ge=1)  # requests a minute of one token
    page_size: int = 50

    # watching over it
    log_format: Literal["text", "json"] = "text"
    metrics_token: SecretStr = SecretStr("")  # that opens /metrics; empty: programs on this machine alone may read it
    free_bytes: int = Field(default=2**30, ge=0)  # below which the home's disk counts as full

    def database(self) -> dict[str, Any]:
        """Django's description of the database. Raises `UsageError` for a URL that it does not know."""
        if not self.database_url or self.database_url.startswith("sqlite"):
            path = self.database_url.removeprefix("sqlite:///") if self.database_url else ""
            return {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": path or str(self.home / "platform.sqlite3"),
                "CONN_MAX_AGE": 60,  # to open one and set it up takes longer than most of what is asked
                "OPTIONS": {
                    # A transaction takes the write lock when it begins: it waits for its turn and never fails half-way.
                    "transaction_mode": "IMMEDIATE",
                    "timeout": 30,
                    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
                },
            }
        url = urlsplit(self.database_url)
        if url.scheme not in {"postgresql", "postgres"}:
            raise UsageError("LABAPEX_DATABASE_URL must begin with postgresql:// or sqlite:///")
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": url.path.lstrip("/"),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "HOST": url.hostname or "",
            "PORT": str(url.port or ""),
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
        }

    def mail_server(self) -> dict[str, Any]:
        """Django's settings of the server that mails go through. Raises `UsageError` for a URL that it does not know."""
        url = urlsplit(self.mail_url)
        if url.scheme not in {"smtp", "smtps"} or not url.hostname:
            raise UsageError("LABAPEX_MAIL_URL must begin with smtp:// or smtps:// and name a host")
        return {
            "EMAIL_HOST": url.hostname,
            "EMAIL_PORT": url.port or (465 if url.scheme == "smtps" else 587),
            "EMAIL_HOST_USER": unquote(url.username or ""),
            "EMAIL_HOST_PASSWORD": unquote(url.password or ""),
            "EMAIL_USE_SSL": url.scheme == "smtps",
            "EMAIL_USE_TLS": url.scheme == "smtp" and bool(url.username),  # no password crosses a wire in the clear
        }

    def channel_layer(self) -> dict[str, Any]:
        """Channels' description of the layer that carries hints between processes."""
        if self.channel_url is None:
            return {"BACKEND": "channels.layers.InMemoryChannelLayer"}
        # It waits for 5 s at a time: redis-py's own limit for an answer is as long and would end every quiet wait.
        host = {"address": self.channel_url, "socket_timeout": 15}
        return {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": [host]}}

    def embedded(self) -> bool:
        """Whether the pipeline lives in the web process."""
        return self.broker_url.startswith("memory://")

    def private_folder(self, *parts: str) -> Path:
        """A folder below `home`, made with mode 0700 where it is missing."""
        folder = self.home
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in parts:
            folder = folder / part
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def secret_key(self) -> str:
        """Django's secret key: a file of mode 0600 below `home`, made at the first run."""
        from labapex_server.lib.files import secret_file

        return secret_file(self.private_folder("keys") / "django", lambda: os.urandom(48).hex().encode()).decode()

    def former_secret_keys(self) -> list[str]:
        """Those that `manage.py keys rotate django` replaced, the latest first."""
        found = sorted(self.private_folder("keys").glob("django.former-*"), reverse=True)
        return [path.read_text() for path in found]
