"""`earnings`: what the platform paid for this worker's jobs. Asked anew each time, by the worker's own key."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from typing import Annotated

import typer
from rich.table import Table

from labapex.cli.output import counted, credits, one_line, print_json, say, stdout
from labapex.errors import MalformedInput, UsageError
from labapex.protocol.api import Earning, Earnings
from labapex_worker.cli.options import HomeOption, JsonOption
from labapex_worker.cli.place import home_of
from labapex_worker.cli.platform import post
from labapex_worker.config import Home
from labapex_worker.identity import Identity

MAX_ANSWER = 1 << 20
COLUMNS = ("settled", "job", "name", "verdict", "verified epochs", "credits")


def earnings(
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one line a job, with commas, on stdout.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show what each judged job was paid, with the total of each day of this host's clock."""
    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other")
    found = list(_all(home_of(home)))
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
    elif as_csv:
        lines = csv.writer(sys.stdout)
        lines.writerow(COLUMNS)
        lines.writerows([_plain(field) for field in _row(each)] for each in found)
    else:
        _show(found)


def _all(home: Home) -> Iterator[Earning]:
    config, identity = home.load(), Identity.load(home.key)
    seen = 0
    while True:
        question = identity.asks_for_earnings(config.worker, at=int(time.time()), skip=seen)
        part = post(config.platform, "earnings", question, Earnings, limit=MAX_ANSWER)
        yield from part.results
        seen += len(part.results)
        if seen >= part.total:
            return
        if not part.results:
            raise MalformedInput(f"the platform tells of {part.total} jobs and names {seen}; try again")


def _show(found: list[Earning]) -> None:
    if not found:
        say("No job of this worker was judged yet.")
        return
    table = Table(*COLUMNS)
    for day, group in groupby(found, key=lambda each: _when(each).date()):
        rows = list(group)
        for each in rows:
            table.add_row(*_row(each))
        total = credits(sum(each.paid for each in rows))
        table.add_row(f"{day:%Y-%m-%d}", "", counted(len(rows), "job"), "", "", total, style="bold", end_section=True)
    table.add_row(
        "all", "", counted(len(found), "job"), "", "", credits(sum(each.paid for each in found)), style="bold"
    )
    stdout().print(table)


def _row(each: Earning) -> tuple[str, ...]:
    when, name = f"{_when(each):%Y-%m-%d %H:%M}", one_line(each.name)
    return when, str(each.job), name, each.verdict, str(each.verified_epochs), credits(each.paid)


def _when(each: Earning) -> datetime:
    return datetime.fromtimestamp(each.settled_at)


def _plain(field: str) -> str:
    """A spreadsheet takes no field for a formula: a job's name is its client's."""
    return "'" + field if field.startswith(("=", "+", "-", "@")) else field
