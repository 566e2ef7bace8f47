"""Another key in the place of one: rotate it, bring what it closed under the new one, forget it."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labapex.errors import Tampered
from labapex_server.lib import keys
from labapex_server.pipeline import rewrapping

DAY = 24 * 3600
NAMES = sorted(keys.KEPT_SECRET | keys.KEPT_PUBLIC)
_NEXT = {
    "wrapping": "now bring the database under it: manage.py keys rewrap; a day later: manage.py keys forget wrapping",
    "django": "restart every process; when the old sessions may end: manage.py keys forget django",
    "verdict": "tell those who pinned the former key, and give them both: what it signed is checked with it",
    "log": "tell those who pinned the former key, with the last head that it signed: to them one log ends and another begins",
}


class Command(BaseCommand):
    help = (
        "Rotate the platform's own keys. Those that workers believe are named by the trust document: manage.py trust."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        does = parser.add_subparsers(dest="does", required=True)
        for name, words, choices in (
            ("rotate", "put a new key in the place of one", NAMES),
            ("forget", "delete the former ones", sorted(keys.KEPT_SECRET)),
        ):
            does.add_parser(name, help=words).add_argument("name", choices=choices)
        does.add_parser("rewrap", help="bring what lies in the database under the present wrapping key")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"_{options['does']}")(options.get("name", ""))
        except Tampered as error:
            raise CommandError(str(error)) from None

    def _rotate(self, name: str) -> None:
        if name == "wrapping" and keys.former_paths(name):
            raise CommandError("the former wrapping key is here still: manage.py keys rewrap, and forget it first")
        kept = keys.rotate(name)
        self.stdout.write(f"a new key is in the place of {name}; of the former one there is {kept}")
        self.stdout.write(_NEXT[name])

    def _rewrap(self, _: str) -> None:
        self.stdout.write(f"{rewrapping.rewrap()} secrets were brought under the present key")

    def _forget(self, name: str) -> None:
        paths = keys.former_paths(name)
        if name == "wrapping":
            self._rewrap("")  # nothing may be left under it
            young = [path for path in paths if time.time() - path.stat().st_mtime < DAY]
            if young:
                raise CommandError(
                    "the key was rotated less than a day ago: uploads that broke off and kept answers may need it; try later"
                )
        for path in paths:
            path.unlink()
        self.stdout.write(f"{len(paths)} former keys are forgotten")
