"""Supply torch to hosts that have none. docs/operations.md, Hosts without torch."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labapex.errors import LabApexError
from labapex_server.jobs import supply


class Command(BaseCommand):
    help = "Have pip load this platform's own torch as wheels, for hosts that have none."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = supply.lock(lambda: None)
        except LabApexError as error:
            raise CommandError(str(error)) from None
        wheels = found.packages.wheels
        self.stdout.write(
            f"hosts without torch get {found.build.torch}, build {found.build.digest[:16]}, from now on:"
            f" {len(wheels)} wheels, {found.packages.size} bytes"
        )
