"""`inspect`, `digest` and `version`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from labapex import installed
from labapex.cli.output import one_line, print_json, size, stdout
from labapex.errors import MalformedInput, UsageError
from labapex.protocol.contract import TorchBuild
from labapex_worker import trust
from labapex_worker.cli.options import HomeOption, JsonOption
from labapex_worker.cli.place import home_of
from labapex_worker.config import own_site_packages
from labapex_worker.inspection import Report, report


def inspect(
    file: Annotated[Path, typer.Argument(help="An executable, as a worker downloads it.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say what an executable is, who signed it, and whether this host would start it. Exits with 1 where it would not.

    Nothing of it is started."""
    chosen = home_of(home)
    try:
        config = chosen.load()
        believed, worker = trust.load(chosen, config), config.worker
    except UsageError:
        if chosen.config.exists():
            raise
        believed = worker = None
    found = report(file, believed, worker, time.time())
    if as_json:
        print_json(found)
    else:
        _show(found)
    if not found.trusted:
        raise typer.Exit(1)


def _show(found: Report) -> None:
    table = Table(show_header=False)
    said = Text("trusted: this host would start it", "green") if found.trusted else Text("not trusted", "red")
    table.add_row("verdict", said)
    if found.problem is not None:
        table.add_row("because", one_line(found.problem))
    table.add_row("job", str(found.job))
    table.add_row("lease", str(found.lease))
    table.add_row("for worker", str(found.worker))
    table.add_row("script", one_line(found.script))
    table.add_row("E, I, k", f"{found.epochs}, {found.iterations_per_epoch}, {found.checkpoint_every}")
    held = (
        f"{size(found.size)}: runner {size(found.runner.size)}, {found.sections} sections {size(found.sections_size)}"
    )
    table.add_row("size", held)
    runner = found.runner
    table.add_row("runner", f"{runner.version}, Python {runner.python}, SHA-256 {runner.digest}")
    table.add_row("", f"released {_day(runner.issued_at)} by key {found.runner_key}, until {_day(runner.expires_at)}")
    torch = f"{one_line(found.torch.torch)} from the platform, build {found.torch.digest}" if found.torch else None
    table.add_row("torch", torch or "the host's own")
    if found.signer is None:
        table.add_row("signed by", f"nobody who counts; it names key {found.manifest_key}")
    else:
        key = found.signer
        table.add_row("signed by", f"key {key.key}, valid from {_day(key.not_before)} to {_day(key.not_after)}")
        table.add_row("root key", key.root)
    table.add_row("expires", _day(found.expires_at))
    stdout().print(table)


def _day(moment: int) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return str(moment)


def digest(
    site_packages: Annotated[
        list[Path] | None, typer.Option(help="Where torch is installed.  [default: this Python's]", show_default=False)
    ] = None,
) -> None:
    """Show which build of torch is installed, once each of its files was found as it was installed.

    A platform's operator puts what is printed into `builds/` of the platform's home."""
    build = installed.find(site_packages or own_site_packages())
    if build is None:
        raise UsageError("no torch that was installed as a package was found; name its folder with --site-packages")
    if (path := build.altered()) is not None:
        raise MalformedInput(f"{build.root}: torch is not what was installed: {path}; install it anew")
    print_json(TorchBuild(torch=build.version, files=len(build.files), digest=build.digest))


def version() -> None:
    """Show the version."""
    try:
        stdout().print(distribution("labapex").version)
    except PackageNotFoundError:
        stdout().print("unknown: labapex runs from its sources")
