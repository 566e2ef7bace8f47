"""Put a backup in the place of a platform that is gone."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labapex.errors import LabApexError
from labapex_server.lib import clock
from labapex_server.pipeline import backup


class Command(BaseCommand):
    help = "Restore a backup into an empty LABAPEX_HOME and an empty database. The old platform must not run any more."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--keys", type=Path, help="keys.tar, where it was kept elsewhere")

    def handle(self, *args: Any, **options: Any) -> None:
        folder: Path = options["folder"]
        try:
            contents = backup.restore(folder, options["keys"] or folder / backup.KEYS)
        except LabApexError as error:
            raise CommandError(str(error)) from None
        minutes = (clock.now().timestamp() - contents.taken_at) / 60
        self.stdout.write(f"restored as of {minutes:.0f} minutes ago; what happened since is not known here any more")
        self.stdout.write("start it as always; hosts come again by themselves")
