"""Makes ready what all processes of a platform need. `serve` does it by itself, unless it is told that it was done."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from labapex.errors import LabApexError
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.lib import keys, store, trust
from labapex_server.lib.config import ROOT
from labapex_server.lib.files import secret_file
from labapex_server.marketplace import executables, releases


class Command(BaseCommand):
    help = "Make ready what all processes need: database, file store, keys, runner and, on an empty platform, a first login."

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        store.prepare()
        keys.verdict_key(), keys.wrap(b"", "first use"), trust.chain()
        login = _first_login()
        _build_runner()
        for concern in (*trust.concerns(time.time()), *_unreleased()):
            self.stderr.write(self.style.WARNING(f"WARNING: {concern}"))
        if login:
            self.stdout.write(f"sign in as {login[0]} with the password {login[1]} (kept in {_login_file()})")


def _login_file() -> str:
    return str(settings.LABAPEX.home / "first-login")


def _first_login() -> tuple[str, str] | None:
    """A login for the first run, with credit to try things out. None where there are people already."""
    path = settings.LABAPEX.private_folder() / "first-login"
    if path.exists():
        name, password = path.read_text().split()
    else:
        name, password = "demo", secrets.token_urlsafe(12)
    if not User.objects.exists():
        secret_file(path, lambda: f"{name} {password}\n".encode())
        name, password = path.read_text().split()
        user = accounts.create_user(name, password=password)
        ledger.top_up(ledger.account_of(user), amount=settings.LABAPEX.starting_credit, memo="to begin with")
    user_now = User.objects.filter(username=name).first()
    return (name, password) if user_now is not None and path.exists() else None


def _build_runner() -> None:
    """Freeze the runner, if nothing of it is there or its sources changed; otherwise this takes no time."""
    if settings.LABAPEX.runner_command:
        return
    roots = [str(ROOT / root) for root in ("client_sdk", "worker_agent") if (ROOT / root).is_dir()]
    built = subprocess.run(
        [sys.executable, "-m", "labapex_runner.build", "--out", str(settings.LABAPEX.runner_dir)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        check=False,
    )
    if built.returncode:
        raise CommandError("the runner could not be built; what is missing stands above")


def _unreleased() -> Iterator[str]:
    """Why workers would refuse the runner that is here."""
    if settings.LABAPEX.runner_command:
        return
    try:
        releases.of_runner(executables.runner())
    except LabApexError as error:
        yield str(error)
