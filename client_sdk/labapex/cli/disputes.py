"""Contest a verdict: `dispute` opens one and shows how it stands, `disputes` lists yours."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from labapex.cli import report
from labapex.cli.options import JobArgument, JsonOption, UrlOption, connect, find, short
from labapex.cli.output import counted, credits, headline, one_line, plain, print_json, say, stdout
from labapex.cli.results import KeyOption, read_keys
from labapex.client import Client, check_ruling
from labapex.protocol.ruling import DisputeTerms, DisputeView, Ruling


def dispute(
    job: JobArgument,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Contest the verdict: why, in your own words. Holds the stake.")
    ] = None,
    key: KeyOption = None,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Contest a job's verdict, or see how that stands: without --reason nothing is opened.

    A client contests a verified job, the owner of a worker its rejected run. The platform trains the job again from its contract;
    whoever was wrong pays for that.
    """
    client = connect(url)
    found = find(client, job)
    if reason is not None:
        _show(client, client.dispute(found, reason), key, json)
        return
    known = next(client.disputes(found), None)
    if known is not None:
        _show(client, known, key, json)
        return
    terms = client.dispute_terms(found)
    if json:
        print_json(terms)
    else:
        stdout().print(_facts(_terms(terms)))


def listing(url: UrlOption = None, json: JsonOption = False) -> None:
    """Disputes in which you are a party, the newest first."""
    found = list(connect(url).disputes())
    if json:
        print_json([plain(each) for each in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "name", "opened by", "stake", "state", "because"):
        table.add_column(column, no_wrap=column == "job")
    for each in found:
        ruling = each.ruling.ruling if each.ruling else None
        state = ruling.outcome.value if ruling else f"{each.executed} of {each.segments} segments run again"
        words = headline(ruling.because if ruling else each.reason)
        cells = (short(each.job), each.name, each.side.value, credits(each.stake), state, words)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    stdout().print(table)
    if not found:
        say("There are none. `labapex dispute JOB` says what contesting a verdict would take.")


def _show(client: Client, found: DisputeView, key: str | None, json: bool) -> None:
    """With the ruling's signature checked, where there is one. Raises `Tampered`."""
    ruling = None
    if found.ruling is not None:
        ruling = check_ruling(found.ruling, read_keys(key)[0] if key else client.verdict_key().public_key)
    if json:
        print_json(found)
        return
    stdout().print(_facts(_told(found, ruling)))
    if ruling is None:
        say(f"The run is trained again from its contract; see {one_line(found.url)}, or ask again")
        return
    if ruling.rules:
        stdout().print(report.rules_table(ruling.rules))
    whose = "the key you gave" if key else "the key that the platform states"
    say(f"The ruling's signature is good: signed by {whose}")
    if found.again:
        say(f"The client runs the false segment again by: {one_line(found.again)}")


def _terms(terms: DisputeTerms) -> dict[str, str]:
    words = terms.obstacle or f"labapex dispute {terms.job} --reason '..'"
    return {
        "you are": f"the {terms.side.value}'s side",
        "stake": f"{credits(terms.stake)} credits, given back if you are right",
        "until": _time(terms.until),
        "not open to you" if terms.obstacle else "to open it": words,
    }


def _told(found: DisputeView, ruling: Ruling | None) -> dict[str, str]:
    rows = {
        "dispute": str(found.id),
        "job": f"{found.name} ({found.job})",
        "opened": f"{_time(found.opened_at)} by the {found.side.value}: {found.reason}",
        "stake": f"{credits(found.stake)} credits",
        "run again": f"{found.executed} of {counted(found.segments, 'segment')}",
    }
    if ruling is None:
        return rows
    rows |= {"ruling": f"{ruling.outcome.value}, {_time(ruling.issued_at)}", "because": ruling.because}
    if ruling.false is not None:
        rows |= {
            "first false": f"segment {ruling.false.segment}, iterations {ruling.false.start} to {ruling.false.stop}",
            "committed": ruling.false.committed,
            "recomputed": ruling.false.recomputed or "it could not be reached",
        }
    rows |= {f"moved {n}": _moved(each.payer, each.payee, each.amount) for n, each in enumerate(ruling.moved, 1)}
    rows["charged"] = f"{credits(ruling.charged)} credits of the stake"
    if ruling.revoked:
        rows["revoked"] = ruling.revoked
    return rows


def _moved(payer: str, payee: str, amount: int) -> str:
    return f"{credits(amount)} credits from {payer} to {payee}"


def _facts(rows: dict[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(one_line(value)))
    return table


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
