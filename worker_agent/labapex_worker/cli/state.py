"""`status`: how the worker is, whether it runs or not."""

from __future__ import annotations

import shutil
import time

from rich.table import Table

from labapex.cli.output import clean, duration, one_line, print_json, size, stdout
from labapex_worker import control, wishes
from labapex_worker.cli.options import HomeOption, JsonOption
from labapex_worker.cli.place import home_of
from labapex_worker.config import Config, Home
from labapex_worker.spool import Spool
from labapex_worker.status import Status, of_leases


def status(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show connection, jobs, limits and the last trouble. Works while the daemon runs and while it does not."""
    chosen = home_of(home)
    config = chosen.load()
    found = control.ask(chosen.control, "status") or at_rest(chosen, config)
    if as_json:
        print_json(found)
    else:
        _show(found)


def at_rest(home: Home, config: Config) -> Status:
    """How a worker is whose daemon does not run: what its files say."""
    leases, spooled = [], 0
    if home.database.exists():
        spool = Spool(home.database, quota=config.spool_bytes, read_only=True)
        try:
            leases, spooled = spool.leases(), spool.spooled_bytes
        finally:
            spool.close()
    wish = wishes.read(home.wish)
    return Status(
        worker=config.worker,
        name=config.name,
        platform=config.platform,
        pid=None,
        wish=wish,
        held=wish.reason,
        limits=config.limits,
        leases=of_leases(home, leases),
        spool_bytes=spooled,
        spool_limit=config.spool_bytes,
        disk_free=shutil.disk_usage(home.path).free,
        disk_limit=config.disk_bytes,
    )


def _show(found: Status) -> None:
    facts = Table(box=None, show_header=False)
    if found.pid is None:
        daemon = "does not run; start it with labapex-worker run, or its service"
    elif found.connected_since is None:
        daemon = f"runs (pid {found.pid}) without a connection"
    else:
        daemon = f"runs (pid {found.pid}), connected for {duration(time.time() - found.connected_since)}"
    facts.add_row("worker", f"{clean(found.name)} ({found.worker}) at {found.platform}")
    facts.add_row("daemon", daemon)
    facts.add_row("work", "takes none: " + found.held if found.held else "is taken" if found.pid else "-")
    if found.devices:
        facts.add_row("devices", ", ".join(found.devices))
    figures = (("power", found.power_watts, "W"), ("temperature", found.temperature, "°C"))
    for name, value, unit in figures:
        if value is not None:
            facts.add_row(name, f"{value:g} {unit}")
    facts.add_row("log kept", f"{size(found.spool_bytes)} of {size(found.spool_limit)}")
    facts.add_row("disk", f"{size(found.disk_free)} free; a job may take {size(found.disk_limit)}")
    if found.trouble is not None:
        ago = duration(time.time() - found.trouble.at)
        facts.add_row("last trouble", f"{one_line(found.trouble.text)} ({ago} ago)")
    stdout().print(facts)
    if not found.leases:
        return
    table = Table("lease", "job", "phase", "process", "iterations", "frames kept", "reason")
    for lease in found.leases:
        share = f" of {lease.total} ({lease.iterations / lease.total:.0%})" if lease.total else ""
        name, reason = one_line(lease.name), one_line(lease.reason)
        progress = f"{lease.iterations}{share}"
        table.add_row(str(lease.lease), name, lease.phase, lease.process, progress, str(lease.frames_kept), reason)
    stdout().print(table)
