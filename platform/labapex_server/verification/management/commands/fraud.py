"""`manage.py fraud`: hosts that were found to lie and about whom nothing was decided yet. docs/operations.md, Fraud."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from labapex_server.lib import clock
from labapex_server.verification import fraud

_DAY = 24 * 3600


class Command(BaseCommand):
    help = "List what was found false or was not opened, with rule and evidence, until its worker is banned or cleared."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--days", type=int, default=30, help="how far back (default: 30)")

    def handle(self, *args: Any, **options: Any) -> None:
        cases = list(fraud.queue(clock.after(-options["days"] * _DAY)))
        for case in cases:
            mark = case.mark
            self.stdout.write(f"{mark.at:%Y-%m-%d %H:%M} {mark.finding}: {mark.rule or 'looked at when it was lost'}")
            self.stdout.write(f"  worker {mark.worker.pk} {mark.worker.name} of {mark.worker.owner}: {case.worker}")
            self.stdout.write(f"  job {case.job.pk} of {case.job.owner}: {case.client}")
            self.stdout.write(f"  {mark.reason}")
        if not cases:
            self.stdout.write(f"nothing to decide of the last {options['days']} days")
