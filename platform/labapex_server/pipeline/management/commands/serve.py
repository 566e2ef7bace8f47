"""One command for the whole platform: database, keys, first login, web, sockets and pipeline."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.module_loading import import_string

from labapex.errors import LabApexError, UsageError
from labapex.protocol.frames import MAX_MESSAGE
from labapex.trust import fingerprint
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.lib import keys, trust
from labapex_server.lib.config import ROOT
from labapex_server.lib.files import secret_file
from labapex_server.marketplace import executables, releases
from labapex_server.marketplace import services as marketplace
from labapex_server.verification import services as verification


class Command(BaseCommand):
    help = "Serve the platform: web, sockets and pipeline in one process. Sets up what is missing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--no-pipeline", action="store_true", help="the pipeline runs elsewhere")

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = options["host"], options["port"]
        if "public_url" not in settings.LABAPEX.model_fields_set:
            settings.LABAPEX = settings.LABAPEX.model_copy(update={"public_url": f"http://127.0.0.1:{port}"})
        call_command("migrate", verbosity=0, interactive=False)
        keys.verdict_key(), keys.wrap(b"", "first use"), trust.chain()
        login = _first_login()
        _build_runner()
        application = import_string(settings.ASGI_APPLICATION)  # takes its time, which is not to be the workers'
        marketplace.forgive_silence()
        verification.forgive_silence()
        embedded = settings.LABAPEX.embedded() and not options["no_pipeline"]
        pipeline = _pipeline() if embedded else None
        for concern in (*trust.concerns(time.time()), *_unreleased()):
            self.stderr.write(self.style.WARNING(f"WARNING: {concern}"))
        self.stdout.write(f"Lab Apex at {settings.LABAPEX.public_url}; root key {fingerprint(trust.root())}")
        if login:
            self.stdout.write(f"sign in as {login[0]} with the password {login[1]} (kept in {_login_file()})")
        if not pipeline:
            self.stdout.write("the pipeline runs elsewhere: celery -A labapex_server worker -B")
        self.stdout.flush()
        try:
            uvicorn.run(
                application,
                host=host,
                port=port,
                ws="websockets-sansio",
                ws_max_size=MAX_MESSAGE,
                ws_per_message_deflate=False,
                log_level="warning",
                lifespan="off",
                timeout_graceful_shutdown=5,
                server_header=False,
            )
        finally:
            if pipeline is not None:
                pipeline.stop()


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


def _pipeline() -> Any:
    from labapex_server.pipeline.embedded import Embedded

    try:
        pipeline = Embedded()
    except UsageError as error:
        raise CommandError(str(error)) from None
    pipeline.start()
    return pipeline
