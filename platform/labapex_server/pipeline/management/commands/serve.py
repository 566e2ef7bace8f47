"""One command for the whole platform: database, keys, first login, web, sockets and pipeline."""

from __future__ import annotations

from typing import Any

import uvicorn
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.module_loading import import_string

from labapex.errors import UsageError
from labapex.protocol.frames import MAX_MESSAGE
from labapex.trust import fingerprint
from labapex_server.lib import trust
from labapex_server.marketplace import services as marketplace
from labapex_server.verification import services as verification


class Command(BaseCommand):
    help = "Serve the platform: web, sockets and pipeline in one process. Sets up what is missing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--prepared", action="store_true", help="`manage.py prepare` was run before")
        parser.add_argument("--no-pipeline", action="store_true", help="the pipeline runs elsewhere")

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = options["host"], options["port"]
        if "public_url" not in settings.LABAPEX.model_fields_set:
            settings.LABAPEX = settings.LABAPEX.model_copy(update={"public_url": f"http://127.0.0.1:{port}"})
        if not options["prepared"]:
            call_command("prepare", stdout=self.stdout, stderr=self.stderr)
        application = import_string(settings.ASGI_APPLICATION)  # takes its time, which is not to be the workers'
        marketplace.forgive_silence()
        verification.forgive_silence()
        embedded = settings.LABAPEX.embedded() and not options["no_pipeline"]
        pipeline = _pipeline() if embedded else None
        self.stdout.write(f"Lab Apex at {settings.LABAPEX.public_url}; root key {fingerprint(trust.root())}")
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
                log_config=None,  # Django's, which everything here has
                lifespan="off",
                timeout_graceful_shutdown=5,
                server_header=False,
            )
        finally:
            if pipeline is not None:
                pipeline.stop()


def _pipeline() -> Any:
    from labapex_server.pipeline.embedded import Embedded

    try:
        pipeline = Embedded()
    except UsageError as error:
        raise CommandError(str(error)) from None
    pipeline.start()
    return pipeline
