"""A platform on a port of this machine, and a host whose worker is a real daemon process."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from uuid import UUID, uuid4

from tests.labapex.authority import Authority
from tests.labapex_worker import agent_wheels, fake_executable
from tests.labapex_worker.platform_double import Gateway, Held

from labapex import executable, sandbox, sealing
from labapex.protocol.canonical import canonical
from labapex.protocol.frames import Grant
from labapex.protocol.manifest import SuppliedTorch
from labapex.protocol.records import uncolumn
from labapex.protocol.requirements import Lock
from labapex_worker.config import Home
from labapex_worker.spool import Spool

ROOT = Path(__file__).resolve().parents[2]


class Cast:
    """A gateway, and the worker of one host."""

    def __init__(self, gateway: Gateway, home: Home, folder: Path) -> None:
        self.gateway, self.home, self.folder = gateway, home, folder
        self.authority = Authority()
        gateway.trust = self.authority.shown
        self.processes: list[asyncio.subprocess.Process] = []
        self.variables: dict[str, str] = {}

    async def labapex_worker(self, *arguments: str) -> asyncio.subprocess.Process:
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT / 'client_sdk'}:{ROOT / 'worker_agent'}",
            "LABAPEX_WORKER_HOME": str(self.home.path),
            "TERM": "dumb",
            "COLUMNS": "200",
            **self.variables,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "labapex_worker.cli", *arguments,
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.processes.append(process)
        return process

    async def said(self, *arguments: str) -> tuple[int | None, str, str]:
        process = await self.labapex_worker(*arguments)
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    async def enrol(self) -> None:
        readable = [part for path in (*sandbox.python_paths(), ROOT) for part in ("--read-only", str(path))]
        code, _, err = await self.said("enrol", "good", "--platform", self.gateway.url, "--name", "box", *readable)
        assert code == 0, err

    def a_job(
        self,
        *,
        challenge: tuple[int, ...] = (),
        altered: bool = False,
        packages: Lock | None = None,
        torch: SuppliedTorch | None = None,
        release: str = "1.0",
        **plan: object,
    ) -> Held:
        lease, job = uuid4(), uuid4()
        parts = self.folder / lease.hex
        parts.mkdir()
        data = fake_executable.make(
            parts,
            authority=self.authority,
            worker=self.gateway.worker,
            lease=lease,
            job=job,
            plan=plan,
            packages=packages,
            torch=torch,
            release=release,
        )
        if altered:
            data = data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
        grant = Grant(lease=lease, job=job, name="digits", token=f"token-{lease}", size=len(data), threads=1)
        whole = parts / "whole"
        whole.write_bytes(data)
        held = Held(grant=grant, challenge=challenge)
        if not altered:
            held.manifest = executable.inspect(whole).manifest
        self.gateway.executables[lease] = data
        return held

    def release_agent(
        self, version: str, *, files: dict[str, str] | None = None, authority: Authority | None = None
    ) -> str:
        """Offer a version of the agent; the digest of its wheel."""
        wheel = agent_wheels.make(version, files=files)
        digest = hashlib.sha256(wheel).hexdigest()
        stated = (authority or self.authority).state("agent", version=version, digest=digest, size=len(wheel))
        self.gateway.agent, self.gateway.agent_wheel = canonical(stated), wheel
        return digest

    def losses(self, held: Held) -> list[float]:
        return [loss for frame in held.frames for loss in uncolumn(sealing.open_frame(held.run_key, frame).losses)]

    async def logs(self, process: asyncio.subprocess.Process, *texts: str, seconds: float = 60) -> None:
        """Wait for a line of a daemon's log with these texts."""
        assert process.stderr is not None
        async with asyncio.timeout(seconds):
            while line := (await process.stderr.readline()).decode():
                if all(text in line for text in texts):
                    return
        raise AssertionError(f"it ended without saying {texts}")

    async def ended(self, process: asyncio.subprocess.Process, seconds: float = 60) -> str:
        async with asyncio.timeout(seconds):
            _, err = await process.communicate()
        return err.decode()


def rows(home: Home) -> list[UUID]:
    spool = Spool(home.database, quota=1 << 30, read_only=True)
    try:
        return [lease.id for lease in spool.leases()]
    finally:
        spool.close()
