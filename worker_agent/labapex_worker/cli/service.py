"""`run`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from labapex.cli.output import say
from labapex_worker import daemon, logs, releases, transfers
from labapex_worker.cli.options import HomeOption
from labapex_worker.cli.place import home_of
from labapex_worker.config import Config, Home
from labapex_worker.spool import Spool
from labapex_worker.trust import Keeper


def run(
    slots: Annotated[int, typer.Option(min=1, max=64, help="Jobs at the same time.")] = 1,
    once: Annotated[bool, typer.Option(help="End after one job.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v")] = False,
    home: HomeOption = None,
) -> None:
    """Take jobs and run them, until SIGTERM. Jobs that run then go on; the next `run` takes them up again."""
    logs.configure(verbose=verbose)
    chosen = home_of(home)
    if releases.Shelf(chosen).path.exists():
        chosen.load()
        with daemon.only_one(chosen):  # what is wrong with this host is not to be laid on a version that is tried
            pass
        releases.hand_over(chosen)
    if daemon.run(chosen, slots=slots, once=once):
        releases.restart()


def update(home: HomeOption = None) -> None:
    """Take the agent that the platform releases, if it is newer than this one. A running worker does so by itself."""
    chosen = home_of(home)
    say(asyncio.run(_update(chosen, chosen.load())))


async def _update(home: Home, config: Config) -> str:
    keeper, shelf = Keeper(home, config), releases.Shelf(home)
    async with transfers.client(config) as http:
        await keeper.refresh(http)
        offered = await releases.look(http)
        if offered is None:
            return "the platform releases no agent"
        release = keeper.trust.release(offered, "agent", time.time())
        if shelf.has_failed(release.digest):
            return f"version {release.version} did not come up on this host; the platform has to release another"
        if not releases.wanted(release, shelf):
            return f"version {releases.running()} is no older than the one that is released, {release.version}"
        await releases.fetch(http, release, shelf)
        keeper.saw(offered)
    if _has_jobs(home, config):
        return f"version {release.version} is here; the running worker takes it over after the last job"
    shelf.switch(release.version)
    return f"version {release.version} counts from the next `labapex-worker run` on"


def _has_jobs(home: Home, config: Config) -> bool:
    if not home.database.exists():
        return False
    spool = Spool(home.database, quota=config.spool_bytes, read_only=True)
    try:
        return bool(spool.leases())
    finally:
        spool.close()
