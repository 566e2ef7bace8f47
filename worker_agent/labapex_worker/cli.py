"""`labapex-worker`: what the owner of a host types."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from labapex import executable, sandbox
from labapex.errors import LabApexError, MalformedInput, PlatformUnreachable, UsageError
from labapex.protocol.api import EnrolReply, EnrolRequest
from labapex.protocol.canonical import explain, parse
from labapex_worker import daemon, devices, journal
from labapex_worker.config import Config, Home, own_site_packages, platform_url
from labapex_worker.identity import Identity
from labapex_worker.spool import Spool

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Rent out this machine to train models in a sandbox, and be paid."
)
out, err = Console(), Console(stderr=True)

DISK_BYTES = 10 << 30
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="The worker's folder.  [env: LABAPEX_WORKER_HOME]", show_default=False)
]


@app.command()
def enrol(
    code: Annotated[str, typer.Argument(help="The code from the portal; it works once.")],
    platform: Annotated[str, typer.Option(help="Address of the platform.")],
    name: Annotated[str, typer.Option(help="How the worker is called in the portal.")] = "",
    site_packages: Annotated[
        list[Path] | None, typer.Option(help="Where torch is installed.  [default: this Python's]", show_default=False)
    ] = None,
    read_only: Annotated[list[Path] | None, typer.Option(help="Further paths that jobs may read.")] = None,
    insecure: Annotated[bool, typer.Option(help="Allow http to another machine.")] = False,
    home: HomeOption = None,
) -> None:
    """Make this host a worker of a platform. The key is made here and stays here."""
    chosen = Home.choose(home)
    url = platform_url(platform, insecure=insecure)
    if chosen.config.exists():
        raise UsageError(f"a worker is enrolled in {chosen.path} already; choose another --home, or remove that folder")
    chosen.create()
    key = Identity.create(chosen.key)
    name = name or os.uname().nodename[:80]
    try:
        request = EnrolRequest(code=code, name=name, public_key=key.public_key)
    except ValidationError as error:
        raise UsageError(explain(error)) from None
    reply = _enrol(url, request)
    chosen.save(
        Config(
            platform=url,
            worker=reply.worker,
            name=name,
            manifest_key=reply.manifest_key,
            site_packages=tuple(path.absolute() for path in site_packages) if site_packages else own_site_packages(),
            read_only=tuple(path.absolute() for path in read_only or ()),
        )
    )
    err.print(f"Enrolled as '{name}' ({reply.worker}). Next: labapex-worker check, then labapex-worker run")


def _enrol(url: str, request: EnrolRequest) -> EnrolReply:
    try:
        with httpx.stream(
            "POST",
            f"{url}/gateway/enrol/",
            content=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
            timeout=30,
            trust_env=False,
        ) as response:
            body = b""
            for chunk in response.iter_bytes(4096):
                body += chunk
                if len(body) > 64 << 10:
                    raise MalformedInput("the platform's answer is too long for an enrolment")
    except httpx.TransportError as error:
        raise PlatformUnreachable(f"no answer from {url}: {error or type(error).__name__}") from None
    if not response.is_success:
        said = "".join(c if c.isprintable() else " " for c in body.decode(errors="replace"))[:500]
        raise UsageError(f"the platform did not enrol this worker (status {response.status_code}): {said}")
    return parse(EnrolReply, body, limit=64 << 10)


@app.command()
def run(
    slots: Annotated[int, typer.Option(min=1, max=64, help="Jobs at the same time.")] = 1,
    once: Annotated[bool, typer.Option(help="End after one job.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
    home: HomeOption = None,
) -> None:
    """Take jobs and run them, until SIGTERM. Jobs that run then go on; the next `run` takes them up again."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(message)s",
    )
    for noisy in ("httpx", "httpcore", "websockets", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    daemon.run(Home.choose(home), slots=slots, once=once)


@dataclass(frozen=True)
class Finding:
    """One line of `check`. Something required that is not there keeps the worker from working."""

    what: str
    good: bool
    required: bool
    detail: str


@app.command()
def check(home: HomeOption = None) -> None:
    """Say what is missing on this host. Exits with 1 if it is something that the worker cannot do without."""
    findings = examine(Home.choose(home))
    table = Table("", "what", "found")
    for finding in findings:
        mark = "[green]ok" if finding.good else "[red]missing" if finding.required else "[yellow]absent"
        table.add_row(mark, finding.what, finding.detail)
    out.print(table)
    if any(finding.required and not finding.good for finding in findings):
        raise typer.Exit(1)


def examine(home: Home) -> list[Finding]:
    """What `check` shows."""
    findings = []
    try:
        config: Config | None = home.load()
        Identity.load(home.key)
        findings.append(Finding("enrolment", True, True, f"'{config.name}' at {config.platform}" if config else ""))
    except UsageError as error:
        config = None
        findings.append(Finding("enrolment", False, True, str(error)))
    gpus = devices.gpus()
    driver = "; ".join(map(str, gpus)) or "no NVIDIA driver: this is a CPU worker, and is shown as one"
    findings.append(Finding("GPU and NVML", bool(gpus), False, driver))
    missing = sandbox.available()
    findings.append(Finding("sandbox", missing is None, True, missing or "bubblewrap works"))
    paths = config.site_packages if config else own_site_packages()
    found = torch_version(paths)
    where = os.pathsep.join(map(str, paths))
    findings.append(Finding("torch", found is not None, True, f"{found} in {where}" if found else f"not in {where}"))
    place = next(path for path in (home.path, *home.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    findings.append(
        Finding(
            "disk", free >= DISK_BYTES, True, f"{free >> 30} GiB free in {place}; {DISK_BYTES >> 30} GiB are needed"
        )
    )
    return findings


def torch_version(paths: tuple[Path, ...]) -> str | None:
    """torch's version in the given site-packages, without importing it."""
    for path in paths:
        for folder in path.glob("torch-*.dist-info"):
            return folder.name.removeprefix("torch-").removesuffix(".dist-info")
    return None


@app.command()
def status(home: HomeOption = None) -> None:
    """Show the leases on this host. Works while the worker runs and while it does not."""
    chosen = Home.choose(home)
    config = chosen.load()
    table = Table("lease", "job", "phase", "process", "loss logs", "frames kept", "reason")
    if chosen.database.exists():
        spool = Spool(chosen.database, quota=config.spool_bytes, read_only=True)
        try:
            for lease in spool.leases():
                process = "-"
                match journal.look(chosen.lease(lease.id)):
                    case journal.Alive():
                        process = "runs"
                    case journal.Ended() as ended:
                        process = str(ended)
                kept = lease.seq - lease.base
                table.add_row(
                    str(lease.id), lease.grant.name, lease.phase, process, str(lease.next), str(kept), lease.reason
                )
        finally:
            spool.close()
    out.print(f"worker {config.worker} '{config.name}' at {config.platform}", highlight=False)
    out.print(table)


@app.command()
def inspect(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Show what an executable says of itself. Nothing is verified, and nothing is started."""
    found = executable.inspect(file)
    out.print_json(found.manifest.model_dump_json())


@app.command()
def version() -> None:
    """Show the version."""
    try:
        out.print(distribution("labapex").version)
    except PackageNotFoundError:
        out.print("unknown: labapex runs from its sources")


def main() -> None:
    """The console script: errors of ours are one line and an exit code, never a traceback."""
    try:
        app()
    except LabApexError as error:
        err.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
