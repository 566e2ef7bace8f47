"""Write a backup of the platform while it runs."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labapex_server.pipeline import backup


class Command(BaseCommand):
    help = (
        "Back the platform up, while it runs, into a new folder: database, files, and the keys in a file of their own."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        folder: Path = options["folder"]
        try:
            contents = backup.take(folder)
        except backup.Unusable as error:
            raise CommandError(str(error)) from None
        for name in contents.sha256:
            self.stdout.write(f"{(folder / name).stat().st_size:>14} bytes  {folder / name}")
        if contents.object_store:
            self.stdout.write(f"clients' files are in {contents.object_store}: its own copies are yours to keep")
        self.stdout.write(f"{folder / backup.KEYS} opens all the rest: move it to another place than the others")
