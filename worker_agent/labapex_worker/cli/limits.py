"""`limits`: what the owner allows, shown and set."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from labapex.cli.output import credits, print_json, say, size, stdout
from labapex.errors import UsageError
from labapex.protocol.canonical import explain
from labapex.protocol.limits import read_size
from labapex.protocol.spec import CREDIT
from labapex_worker import control
from labapex_worker.cli.options import HomeOption, JsonOption
from labapex_worker.cli.place import home_of
from labapex_worker.config import Config
from labapex_worker.limits import Limits, read_hours

NONE = "none"


def limits(
    price: Annotated[
        str | None, typer.Option(help="Credits for a GPU-hour of the next job; none: the platform's.")
    ] = None,
    hours: Annotated[
        str | None, typer.Option(help="When it works by its own clock: 22:00-07:00[,..], or always.")
    ] = None,
    hard_hours: Annotated[
        bool | None, typer.Option("--hard-hours/--soft-hours", help="Whether hours end a job that runs, too.")
    ] = None,
    idle_only: Annotated[
        bool | None, typer.Option("--idle-only/--always", help="No new job while others use GPU or host.")
    ] = None,
    max_power: Annotated[str | None, typer.Option(help="Watts of one GPU, or none.")] = None,
    max_temperature: Annotated[str | None, typer.Option(help="Degrees Celsius of one GPU, or none.")] = None,
    grace: Annotated[str | None, typer.Option(help="Seconds over these two until a job is given back.")] = None,
    disk: Annotated[str | None, typer.Option(help="Disk that one job may take: 200G.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory that one job may take: 48G, or none: 9/10 of the host's.")
    ] = None,
    metrics_port: Annotated[str | None, typer.Option(help="Port on 127.0.0.1 for a page of metrics, or none.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show what this worker is allowed, or change it. A change holds at once, for what begins from then on."""
    chosen = home_of(home)
    config = chosen.load()
    own = {
        "price_per_hour": None if price is None else _optional(price, _micro),
        "hours": None if hours is None else read_hours(hours),
        "hard_hours": hard_hours,
        "idle_only": idle_only,
        "max_power_watts": None if max_power is None else _optional(max_power, _number),
        "max_temperature": None if max_temperature is None else _optional(max_temperature, _number),
        "grace_seconds": None if grace is None else _number(grace),
        "metrics_port": None if metrics_port is None else _optional(metrics_port, _whole),
    }
    sizes = {
        "disk_bytes": None if disk is None else _size(disk),
        "total_memory_bytes": None if memory is None else _optional(memory, _size),
    }
    changes = _given(own), _given(sizes)
    if any(changes):
        config = _changed(config, *changes)
        chosen.save(config)
        if control.ask(chosen.control, "reload") is None:
            say("Saved. No daemon runs here; the next labapex-worker run heeds it.")
    if as_json:
        print_json({**config.limits.model_dump(mode="json"), **{name: getattr(config, name) for name in sizes}})
    else:
        _show(config)


class _Unset:
    """The owner takes a limit away."""


def _optional(text: str, read: Any) -> Any:
    return _Unset if text.strip().lower() == NONE else read(text)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is _Unset else value for name, value in values.items() if value is not None}


def _changed(config: Config, own: dict[str, Any], sizes: dict[str, Any]) -> Config:
    try:
        return Config.model_validate({**dict(config), **sizes, "limits": Limits(**{**dict(config.limits), **own})})
    except ValidationError as error:
        raise UsageError(explain(error)) from None


def _show(config: Config) -> None:
    own, table = config.limits, Table(box=None, show_header=False)
    price = "what the platform has on record" if own.price_per_hour is None else credits(own.price_per_hour)
    table.add_row("price", f"{price} (credits an hour, from the next job on)")
    hours = ", ".join(map(str, own.hours)) + (", then jobs are given back" if own.hard_hours else ", jobs go on")
    table.add_row("hours", hours if own.hours else "always")
    table.add_row("idle only", "yes" if own.idle_only else "no")
    for name, limit, unit in (("power", own.max_power_watts, "W"), ("temperature", own.max_temperature, "°C")):
        given = "no limit" if limit is None else f"{limit:g} {unit}, after {own.grace_seconds:g} s jobs are given back"
        table.add_row(name, given)
    table.add_row("disk", f"{size(config.disk_bytes)} for a job")
    memory = "nine tenths of the host's" if config.total_memory_bytes is None else size(config.total_memory_bytes)
    table.add_row("memory", f"{memory} for a job")
    port = own.metrics_port
    table.add_row("metrics", "off" if port is None else f"http://127.0.0.1:{port}/")
    stdout().print(table)


def _size(text: str) -> int:
    try:
        return read_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _micro(text: str) -> int:
    amount = _number(text) * CREDIT
    if amount != int(amount):
        raise UsageError(f"'{text}' credits have more than six digits after the point")
    return int(amount)


def _whole(text: str) -> int:
    number = _number(text)
    if number != int(number):
        raise UsageError(f"'{text}' is no whole number")
    return int(number)


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        raise UsageError(f"'{text}' is no number") from None
    if not number.is_finite() or abs(number) > 10**15:
        raise UsageError(f"'{text}' is no number that could be meant")
    return number
