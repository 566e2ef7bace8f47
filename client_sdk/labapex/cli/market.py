"""What there is to buy, and with what: `offers`, `balance`, `statement`."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from labapex.cli.options import JsonOption, UrlOption, connect
from labapex.cli.output import clean, counted, credits, one_line, plain, print_json, say, size, stdout
from labapex.client import Client
from labapex.errors import MissingScope, UsageError
from labapex.protocol.api import Offer, OfferOrder, Scope
from labapex.protocol.canonical import explain
from labapex.protocol.spec import CREDIT, Constraints, JobSpec


def offers(
    device: Annotated[str | None, typer.Option(help="A part of the device's name, for example H100.")] = None,
    min_memory: Annotated[str | None, typer.Option(metavar="GB", help="Memory of the device.")] = None,
    max_price: Annotated[str | None, typer.Option(metavar="CREDITS", help="For an hour.")] = None,
    min_speed: Annotated[str | None, typer.Option(metavar="GFLOP/S", help="That the host has shown.")] = None,
    min_deposit: Annotated[
        str | None, typer.Option(metavar="CREDITS", help="That the host's owner loses when it is found to have lied.")
    ] = None,
    sort: Annotated[OfferOrder, typer.Option(help="What comes first.")] = OfferOrder.PRICE,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """What connected hosts offer. The same names in labapex.yaml say which hosts a job may go to."""
    asked = {
        "device": device,
        "min_memory": min_memory,
        "max_price": max_price,
        "min_speed": min_speed,
        "min_deposit": min_deposit,
    }
    try:
        wanted = Constraints.model_validate({name: value for name, value in asked.items() if value is not None})
    except ValidationError as error:
        raise UsageError(explain(error)) from None
    client = connect(url)
    found = list(client.all_offers(wanted, sort))
    if json:
        print_json([plain(offer) for offer in found])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("host", "device", "memory", "credits/h", "GFLOP/s", "for a credit", "deposit", "reputation", ""):
        table.add_column(column)
    for offer in found:
        table.add_row(*(Text(one_line(cell)) for cell in _cells(offer)))
    stdout().print(table)
    if fee := client.offers(wanted, limit=1).fee_basis_points:
        say(f"The platform asks {fee / 100:g} % besides.")
    if not found:
        say(f"There are none: {one_line(client.offers(wanted, limit=1).lacking or 'try again')}.")


def balance(url: UrlOption = None, json: JsonOption = False) -> None:
    """Your credits: available, held for jobs, and what verified work has cost you so far."""
    me = connect(url).me()
    if me.available is None or me.held is None or me.spent is None:
        raise MissingScope(
            f"this needs the scope {Scope.BILLING_READ}, which the token '{one_line(me.token.name)}' has not"
        )
    amounts = {"available": me.available, "held": me.held, "spent": me.spent}
    if json:
        print_json(amounts)
        return
    for name, amount in amounts.items():
        typer.echo(f"{name:<10} {credits(amount)}")


def statement(
    month: Annotated[
        str | None, typer.Argument(metavar="MONTH", help="Such as 2026-11; default: the present one.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="As a table for a spreadsheet, on stdout.")] = False,
    url: UrlOption = None,
    json: JsonOption = False,
) -> None:
    """Your account in a month, entry by entry."""
    client = connect(url)
    if csv:
        typer.echo(clean(client.statement_csv(month)), nl=False)
        return
    first = client.statement(month)
    entries = list(client.entries(first.month))
    if json:
        print_json({**plain(first), "results": [plain(entry) for entry in entries], "next": None})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("when (UTC)", "credits", "status", "what"):
        table.add_column(column)
    for entry in reversed(entries):
        at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.at))
        table.add_row(*(Text(one_line(cell)) for cell in (at, credits(entry.amount), entry.status, entry.memo)))
    stdout().print(table)
    say(f"{first.month}: {credits(first.opening)} credits at its beginning, {credits(first.closing)} at its end")


def _cells(offer: Offer) -> tuple[str, ...]:
    speed = offer.speed
    return (
        offer.name,
        offer.device if offer.devices == 1 else f"{offer.devices} × {offer.device}",
        "?" if offer.memory is None else size(offer.memory),
        credits(offer.price_per_hour),
        "not shown" if speed is None else f"{speed:,.0f}",
        "" if speed is None else f"{speed * CREDIT / offer.price_per_hour:,.0f}",
        credits(offer.deposit),
        f"{offer.reputation}, {offer.verified} verified",
        ", ".join(["free" if offer.free else "busy", *(f"{hours} UTC" for hours in offer.hours)]),
    )


def words(client: Client, spec: JobSpec) -> str:
    """How many offers a job could go to now, and how long its budget lasts on the cheapest."""
    page = client.offers(spec, limit=1)
    if not page.results:
        return f"none fits now, and the job would wait: {page.lacking}"
    price = page.results[0].price_per_hour
    whole = price * (10_000 + page.fee_basis_points) / 10_000
    fee = f" and {page.fee_basis_points / 100:g} % to the platform" if page.fee_basis_points else ""
    fit = f"{counted(page.total, 'offer')} {'fits' if page.total == 1 else 'fit'}, {page.free} free now"
    return f"{fit}; from {credits(price)} credits an hour{fee}, at which the budget lasts {spec.budget_micro / whole:.3g} h"
