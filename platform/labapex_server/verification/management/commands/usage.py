"""What lies where: bytes below the home by kind, and the accounts that take most."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import connection

from labapex_server.accounts.models import User
from labapex_server.lib.files import size_of
from labapex_server.telemetry.models import Frame
from labapex_server.verification import erasing

KINDS = {
    "blobs": "files of clients",
    "uploads": "uploads that broke off",
    "leases": "states, weights",
    "wheels": "packages of jobs",
    "runners": "runners, frozen",
    "environments": "the same unpacked",
    "work": "replays under way",
    "keys": "keys",
}


class Command(BaseCommand):
    help = "Show what lies where: bytes by kind and by account."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--accounts", type=int, default=20, help="how many accounts to list (20)")

    def handle(self, *args: Any, **options: Any) -> None:
        home: Path = settings.LABAPEX.home
        taken: Counter[str] = Counter()
        for folder, _, files in os.walk(home):
            top = Path(folder).relative_to(home).parts[:1]
            for name in files:
                kind = KINDS.get(top[0], "other files") if top else _at_top(name)
                taken[kind] += size_of(Path(folder) / name) or 0
        self.stdout.write(f"{home}, {_disk(home)}")
        for kind, amount in taken.most_common():
            self.stdout.write(f"  {_text(amount):>12}  {kind}")
        self.stdout.write(f"database {connection.vendor}, {_database()}{Frame.objects.count()} frames of logs")
        found = [(erasing.storage(user), user) for user in User.objects.all()]
        found.sort(key=lambda row: -(row[0].files_bytes + row[0].states_bytes + row[0].weights_bytes))
        self.stdout.write("account                     files    unfinished        states       weights")
        for held, user in found[: options["accounts"]]:
            amounts = (held.files_bytes, held.unfinished_bytes, held.states_bytes, held.weights_bytes)
            self.stdout.write(f"{user.get_username()[:20]:<20}" + "".join(f"{_text(each):>14}" for each in amounts))


def _at_top(name: str) -> str:
    return "SQLite" if name.startswith("platform.sqlite3") else "other files"


def _disk(home: Path) -> str:
    disk = os.statvfs(home)
    return f"{_text(disk.f_bavail * disk.f_frsize)} free of {_text(disk.f_blocks * disk.f_frsize)}"


def _database() -> str:
    if connection.vendor != "postgresql":
        return ""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        return f"{_text(cursor.fetchone()[0])}, "


def _text(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
