"""`install` and `uninstall`: the worker as a service, and gone without a trace."""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from labapex.cli.output import counted, say
from labapex.errors import UsageError
from labapex_worker import control, installation, journal, unit, wishes
from labapex_worker.cli.enrolment import register
from labapex_worker.cli.options import HomeOption, RootKeyOption
from labapex_worker.cli.place import as_user
from labapex_worker.cli.state import at_rest
from labapex_worker.config import Home
from labapex_worker.installation import CannotInstall, Place
from labapex_worker.supervisor import Folder
from labapex_worker.wishes import Wish

STOP_SECONDS = 60.0
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
RootOption = Annotated[
    Path | None,
    typer.Option("--root", file_okay=False, exists=True, help="The folder of a whole system, an image for instance."),
]


def install(
    enrol: Annotated[
        str | None, typer.Option(metavar="CODE", help="Enrol, too, with this code from the portal.")
    ] = None,
    platform: Annotated[str | None, typer.Option(help="Address of the platform, with --enrol.")] = None,
    name: Annotated[str, typer.Option(help="How the worker is called in the portal, with --enrol.")] = "",
    root_key: RootKeyOption = "",
    insecure: Annotated[bool, typer.Option(help="Allow http to another machine, with --enrol.")] = False,
    user: Annotated[str | None, typer.Option(help="An existing user to run as, instead of one of its own.")] = None,
    root: RootOption = None,
    home: HomeOption = None,
) -> None:
    """Make the worker a service of systemd: of the whole system, as a user of its own, when root asks; else of yours."""
    if (enrol is None) != (platform is None):
        raise UsageError("--enrol CODE and --platform URL go together")
    if root is not None and enrol is not None:
        raise UsageError(
            "an image must not hold a worker's key: leave --enrol away, and enrol on the host that runs it"
        )
    place = _place(root, home)
    if not place.system and user is not None:
        raise UsageError("--user is for root; your own service runs as you")
    if place.system and root is None:
        _can_be_run_by_others()
    record = installation.install(place, user=user)
    say(f"Installed as {place.at(place.service)}, running as {record.user}.")
    if enrol is not None and platform is not None:
        given, at = enrol, platform
        as_user(
            pwd.getpwnam(record.user).pw_uid,
            lambda: _enrol(Home(record.home), given, at, name, root_key, insecure),
        )
    if root is not None:
        say("Nothing was started: it starts with the system in that folder, once a worker is enrolled there.")
    elif not _BOOTED.is_dir():
        say("No systemd runs here, so nothing was started. Start it by hand: labapex-worker run")
    else:
        _systemctl(place, "daemon-reload")
        _systemctl(place, "restart", unit.SERVICE)
        if not Home(record.home).config.exists():
            say("It waits for its enrolment: labapex-worker enrol CODE --platform URL, then restart the service.")
        elif not place.system:
            say(f"It runs while you are logged in; for always: loginctl enable-linger {record.user}")


def _enrol(home: Home, code: str, platform: str, name: str, root_key: str, insecure: bool) -> None:
    made = register(home, code, platform, name, root_key=root_key, insecure=insecure)
    say(f"Enrolled as '{made.name}' ({made.worker}).")


def uninstall(
    now: Annotated[bool, typer.Option("--now", help="Do not wait for jobs: what runs is ended, and not paid.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    root: RootOption = None,
    home: HomeOption = None,
) -> None:
    """Remove service, user and the worker's folder with its key, after the last job. Nothing is left."""
    place = _place(root, home)
    record = place.load()
    if record is None:
        raise UsageError(f"no worker is installed here: there is no {place.at(place.record)}")
    whose = f", the user {record.user}" if record.user_made else ""
    if not yes:
        typer.confirm(
            f"Remove the service{whose} and {place.at(record.home)} with the worker's key?", abort=True, err=True
        )
    if root is None:
        account = pwd.getpwnam(record.user).pw_uid
        as_user(account, lambda: _make_sure_it_is_empty(Home(record.home), now=now))
        if _BOOTED.is_dir():
            _systemctl(place, "stop", unit.SERVICE)
        as_user(account, lambda: _end(Home(record.home)))
    installation.remove(place, record)
    if root is None and _BOOTED.is_dir():
        _systemctl(place, "daemon-reload")
    say("Removed. The worker's name and its earnings stay with the platform.")


def _place(root: Path | None, home: Path | None) -> Place:
    if root is None and os.geteuid() != 0:
        return Place.of_user(Home.choose(home))
    if home is not None:
        raise UsageError("--home cannot be chosen for a service of the whole system")
    return Place.of_system(root or Path("/"))


def _can_be_run_by_others() -> None:
    """Refuse to install what the service's user could not start."""
    line = [sys.executable, "-I", "-c", "import labapex_worker.cli"]
    try:
        done = subprocess.run(
            line, user="nobody", group=pwd.getpwnam("nobody").pw_gid, extra_groups=[], cwd="/", env={}, check=False,
            stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
    except PermissionError:
        done = None
    if done is None or done.returncode != 0:
        raise UsageError(
            f"other users cannot run {sys.executable} with its packages, and the service runs as one; install labapex where "
            "all can read it, for instance in a virtual environment under /opt"
        )


def _make_sure_it_is_empty(home: Home, *, now: bool) -> None:
    """Raises `UsageError` where there are jobs to wait for, and lets the daemon run empty meanwhile."""
    if now or not home.config.exists():
        return
    found = control.ask(home.control, "status") or at_rest(home, home.load())
    if not found.leases:
        return
    wishes.write(home.wish, Wish.DRAIN)
    control.ask(home.control, "reload")
    raise UsageError(
        f"{counted(len(found.leases), 'job')} not over yet; no other is taken from now on. Come back when "
        "labapex-worker status shows none, or end what runs with --now"
    )


def _end(home: Home) -> None:
    """End the daemon, however it was started, and all jobs."""
    if not home.path.is_dir():
        return
    running = control.ask(home.control, "status")
    if running is not None and running.pid is not None:
        os.kill(running.pid, signal.SIGTERM)
    with home.lock.open("w") as lock:
        give_up = time.monotonic() + STOP_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise CannotInstall(f"the daemon in {home.path} does not end; kill it, then try again") from None
                time.sleep(0.1)
        for job in (home.path / "jobs").glob("*"):
            for each in (Folder(job), Folder(job).again):
                journal.kill(each.path)


def _systemctl(place: Place, *words: str) -> None:
    scope = [] if place.system else ["--user"]
    done = subprocess.run(
        ["systemctl", *scope, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CannotInstall(f"systemctl {' '.join(words)} failed: {done.stderr.strip()[-500:]}")
