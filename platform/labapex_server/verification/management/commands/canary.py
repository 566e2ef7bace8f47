"""`manage.py canary`: look at all of what some host does with a job. docs/operations.md, Fraud."""

from __future__ import annotations

import random
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex.errors import LabApexError
from labapex_server.accounts.models import User
from labapex_server.verification import canary


class Command(BaseCommand):
    help = "Submit one of an account's verified jobs again, all of it to be replayed; to be run by a timer."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="an ordinary account, with credit, that submitted such jobs before")
        parser.add_argument("--chance", type=float, default=1.0, help="that it does so now, 0 to 1 (default: 1)")

    def handle(self, *args: Any, **options: Any) -> None:
        draw = random.SystemRandom()
        owner = User.objects.filter(username=options["user"]).first()
        if owner is None:
            raise CommandError(f"there is no user {options['user']!r}")
        if not 0 <= options["chance"] <= 1:
            raise CommandError("--chance must be from 0 to 1")
        if draw.random() >= options["chance"]:
            self.stdout.write("not this time")
            return
        try:
            job = canary.submit(owner, draw)
        except LabApexError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"submitted {job.name} as {job.pk}")
