"""What is stored of one's jobs: `storage` shows it, `delete` removes it."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from labapex.cli.options import JsonOption, UrlOption, connect, find
from labapex.cli.output import one_line, plain, print_json, say, size, stdout
from labapex.errors import UsageError
from labapex.protocol.api import JobView, Storage


def storage(url: UrlOption = None, json: JsonOption = False) -> None:
    """What your data takes on the platform, and how long it is kept."""
    found = connect(url).storage()
    if json:
        print_json(found)
    else:
        stdout().print(_table(found))


def delete(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Ended jobs.")] = None,
    files: Annotated[bool, typer.Option("--files", help="All files of yours that no job needs.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Delete without asking.")] = False,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Delete what is stored of ended jobs: files, states, weights, log. Verdict, receipt and certificate stay."""
    if not jobs and not files:
        raise UsageError("name the jobs whose data is to be deleted, or --files")
    client = connect(url)
    found = [find(client, job) for job in jobs or ()]
    what = f"the data of {len(found)} jobs" if found else "your files that no job needs"
    if not yes and not typer.confirm(f"Delete {what}? It cannot be brought back.", default=False, err=True):
        raise UsageError("nothing was deleted; -y deletes without asking")
    deleted = [client.delete(job) for job in found]
    left = client.delete_files() if files else client.storage()
    if json:
        print_json({"jobs": [plain(job) for job in deleted], "storage": plain(left)})
        return
    for job in deleted:
        say(one_line(f"{job.id}: {erasure(job)}"))
    stdout().print(_table(left))


def erasure(job: JobView) -> str:
    """What was deleted of a job, and what will be; nothing where that is nothing."""
    said = [f"{each.what.value} deleted on {_day(each.at)} ({each.reason})" for each in job.erased]
    if job.erase_after is not None:
        said.append(f"all of it is deleted on {_day(job.erase_after)}: until then its verdict may be contested")
    return "; ".join(said)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(at))


def _table(found: Storage) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(justify="right")
    grid.add_column()
    limit = f"of {size(found.limit_bytes)}; " if found.limit_bytes else ""
    for name, amount, words in (
        ("files", found.files_bytes, f"{limit}{found.files} files; {_kept(found.files_days)}"),
        ("unfinished uploads", found.unfinished_bytes, "kept for a day"),
        ("states", found.states_bytes, _kept(found.states_days)),
        ("weights", found.weights_bytes, f"{_kept(found.results_days)}, as are logs"),
    ):
        grid.add_row(Text(name), Text(size(amount)), Text(words))
    return grid


def _kept(days: float) -> str:
    return f"kept {days:g} days after the last job" if days else "kept until you delete them"
