"""Supply torch to hosts that have none. docs/operations.md, Hosts without torch."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labapex.errors import LabApexError
from labapex_server.jobs import supply


class Command(BaseCommand):
    help = "Have pip load builds of this platform's release of torch as wheels, for hosts that have none."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "builds",
            nargs="*",
            metavar="BUILD",
            help="cpu, cu126, cu130, ..: as torch marks them; without any: this platform's own",
        )

    def handle(self, *args: Any, builds: list[str], **options: Any) -> None:
        asked: list[str | None] = [*builds] or [None]
        for label in asked:
            try:
                found = supply.lock(lambda: None, label)
            except LabApexError as error:
                raise CommandError(str(error)) from None
            wheels = found.packages.wheels
            self.stdout.write(
                f"hosts without torch can get {found.build.torch}, build {found.build.digest[:16]}, from now on:"
                f" {len(wheels)} wheels, {found.packages.size} bytes"
            )
