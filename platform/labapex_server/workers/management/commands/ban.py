"""`manage.py ban`: no more jobs for a worker, or jobs again. docs/operations.md, Fraud."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex_server.lib.errors import Conflict
from labapex_server.workers import services
from labapex_server.workers.models import Worker


class Command(BaseCommand):
    help = "Ban a worker, or lift its ban; the reason is kept for good."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("worker", type=UUID, help="its id, as `manage.py fraud` and `manage.py speeds` print it")
        parser.add_argument("--reason", required=True, help="why, and who says so")
        parser.add_argument(
            "--lift", action="store_true", help="let it have jobs again; it is as little trusted as a new one"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        worker, banned = Worker.objects.filter(pk=options["worker"]).first(), not options["lift"]
        if worker is None:
            raise CommandError(f"there is no worker {options['worker']}")
        if not options["reason"].strip():
            raise CommandError("--reason: say why")
        try:
            services.set_banned(worker, banned, options["reason"].strip())
        except Conflict as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{worker.name} {'gets no jobs any more' if banned else 'may have jobs again'}")
