"""What docker/compose.yaml starts, as processes of this machine: its services' commands, environments and secrets, two of
each where it says two, behind a Caddy with docker/Caddyfile. Each process has a disk of its own, as on machines that share
nothing but database, broker and store. What is different here stands in `Composed.here`, and nowhere else."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from tests.e2e.stack import ROOT, Process, Stack, free_port

DOCKER = ROOT / "docker"
KEYS = ("keys", "trust.json", "releases")  # what docs/operations.md has an operator copy to each machine
OWN = "labapex/"  # the images that we make


class Composed(Stack):
    """`database`, `redis`, `rabbitmq` and `store` are URLs of services that were made for this platform alone."""

    def __init__(self, folder: Path, *, database: str, redis: str, rabbitmq: str, queue: str, store: str) -> None:
        super().__init__(folder)
        self.url = f"https://localhost:{self.port}"
        self.trusted = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        self._environment["SSL_CERT_FILE"] = str(self.trusted)
        self._queue = queue
        self.here = {
            "LABAPEX_ADDRESS": f"localhost:{self.port}",
            "http://store:8333": store,
            "labapex_database_url": database,
            "labapex_channel_url": redis,
            "labapex_broker_url": rabbitmq,
            "/run/secrets": str(folder / "secrets"),
        }
        self._file: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
        self._write_secrets()
        self.ports = {name: free_port() for name in self._file["services"] if name.startswith("web-")}
        self.services: dict[str, Process] = {}
        for name, service in self._file["services"].items():
            if service["image"].startswith(OWN):
                copies = service.get("deploy", {}).get("replicas", 1)
                for label in [name] if copies == 1 else [f"{name}-{n + 1}" for n in range(copies)]:
                    self.services[label] = self._process(label, service)
        self.services["proxy"] = self._proxy()
        self.platform = self.services["web-1"]

    def serve(self) -> None:
        """`prepare` to its end, then its keys to all machines, then everything else."""
        prepare = self.services.pop("prepare")
        with prepare.log.open("ab") as log:
            subprocess.run(prepare.command, cwd=ROOT, env=prepare.environment, check=True, stdout=log, stderr=log)
        first = Path(prepare.environment["LABAPEX_HOME"])
        shutil.copy(first / "first-login", self.folder / "platform" / "first-login")
        for process in self.services.values():
            if home := process.environment.get("LABAPEX_HOME"):
                Path(home).mkdir(mode=0o700, parents=True)
                for name in KEYS:
                    copy = shutil.copytree if (first / name).is_dir() else shutil.copy
                    copy(first / name, Path(home) / name)
            process.start()
        self.until("the certificate is there", self.trusted.exists)
        os.environ["SSL_CERT_FILE"] = str(self.trusted)
        self.verify = ssl.create_default_context(cafile=str(self.trusted))
        self.until("the platform answers", self._answers)

    def end(self) -> None:
        super().end()
        for process in self.services.values():
            process.kill()

    def answers(self, service: str) -> bool:
        """Whether this very web process does."""
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.ports[service]}/healthz", timeout=5, trust_env=False).is_success
        return False

    def home(self, service: str) -> Path:
        return Path(self.services[service].environment["LABAPEX_HOME"])

    def _write_secrets(self) -> None:
        folder = self.folder / "secrets"
        folder.mkdir(mode=0o700)
        (self.folder / "platform").mkdir(mode=0o700)
        for name, content in runpy.run_path(str(DOCKER / "secrets.py"))["files"]().items():
            (folder / name).write_text(self.here.get(name, content))

    def _process(self, label: str, service: dict[str, Any]) -> Process:
        environment = {name: self._filled(str(text)) for name, text in service["environment"].items()}
        environment |= {
            "DJANGO_SETTINGS_MODULE": "labapex_server.settings",
            "LABAPEX_HOME": str(self.folder / "machines" / label),
            "LABAPEX_QUEUE": self._queue,
            # not a matter of the file: a test does not wait for minutes
            "LABAPEX_HEARTBEAT_SECONDS": "1",
            "LABAPEX_LEASE_SECONDS": "8",
            "LABAPEX_SWEEP_SECONDS": "0.5",
            "LABAPEX_RING_SECONDS": "3",
            "LABAPEX_CLAIM_SECONDS": "5",
            "LABAPEX_TRIAL_HOURS": "0",
        }
        kept = {k: v for k, v in self._environment.items() if k != "SSL_CERT_FILE"}
        return Process(self._command(label, service), kept | environment, self.folder / f"{label}.log", ROOT)

    def _command(self, label: str, service: dict[str, Any]) -> list[str]:
        program, *arguments = map(str, service["command"])
        known = {"python": [sys.executable], "celery": [sys.executable, "-m", "celery"]}
        changed = {"labapex": self._queue, "labapex-sandbox": f"{self._queue}-sandbox", "0.0.0.0": "127.0.0.1"}
        if label in self.ports:
            changed["8000"] = str(self.ports[label])
        queues = [changed.get(argument, argument) for argument in arguments]
        if "worker" in arguments:
            queues += ["--hostname", f"{label}@%h"]  # containers have names of their own
        return known[program] + queues

    def _filled(self, text: str) -> str:
        """A value of the file as it is here."""
        text = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: self.here[found[1]], text)
        for there, here in self.here.items():
            text = text.replace(there, here)
        return text

    def _proxy(self) -> Process:
        (self.folder / "caddy").mkdir()
        options = f"local_certs\n\tskip_install_trust\n\thttp_port {free_port()}\n\thttps_port {self.port}"
        environment = self._environment | {
            "LABAPEX_ADDRESS": self.here["LABAPEX_ADDRESS"],
            "LABAPEX_CADDY_OPTIONS": f"{options}\n\tstorage file_system {self.folder / 'caddy'}",
            "LABAPEX_UPSTREAMS": " ".join(f"127.0.0.1:{port}" for port in self.ports.values()),
        }
        command = ["caddy", "run", "--config", str(DOCKER / "Caddyfile"), "--adapter", "caddyfile"]
        return Process(command, environment, self.folder / "proxy.log", self.folder)
