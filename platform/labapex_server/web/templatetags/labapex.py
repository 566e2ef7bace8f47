"""How figures and states are written on pages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from labapex.protocol.api import Offer
from labapex.protocol.spec import CREDIT
from labapex_server.web import words
from labapex_server.workers.models import Worker

register = template.Library()


@register.filter
def credits(micro: int | None) -> str:
    """Micro-credits as credits with at least two decimals: 2500000 is "2.50"."""
    if micro is None:
        return "–"
    sign, amount = ("−" if micro < 0 else ""), abs(micro)
    whole, fraction = divmod(amount, CREDIT)
    return f"{sign}{whole:,}.{f'{fraction:06d}'.rstrip('0').ljust(2, '0')}"


@register.filter
def size(count: int | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


@register.filter
def device_facts(device: dict[str, Any]) -> str:
    """What a host told of a device (`protocol.devices.Device`), in a line; what it did not tell is left out."""
    told = [size(device["memory"])] if device["memory"] is not None else []
    told += [f"compute {device['capability']}"] if device["capability"] else []
    told += [f"driver {device['driver']}"] if device["driver"] else []
    told += [f"CUDA {device['cuda']}"] if device["cuda"] else []
    told += [f"at most {device['power_limit']:.0f} W"] if device["power_limit"] is not None else []
    told += ["ECC"] if device["ecc"] else []
    return " · ".join(told)


@register.filter
def speed_words(worker: Worker) -> str:
    """What a worker was made to show, and what an hour of a thousand such GFLOP/s costs."""
    if worker.speed is None:
        trial = worker.trials.order_by("-at").first()
        return f"not measured: {trial.problem}" if trial is not None and trial.problem else "not measured yet"
    price = credits(round(worker.price_per_hour / worker.speed * 1000))
    return f"{worker.speed:,.0f} GFLOP/s, shown {worker.speed_at:%d %b %Y}; {price} credits an hour for each 1,000"


@register.filter
def value_figure(offer: Offer) -> str:
    """The speed of an offer for each credit an hour."""
    return "–" if offer.speed is None else f"{offer.speed * CREDIT / offer.price_per_hour:,.0f}"


@register.filter
def number(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


@register.filter
def figure(value: Any) -> str:
    """A rule's value or limit, which is a number, a word or nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.5g}"
    return str(value)


@register.filter
def short(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest else "–"


@register.filter
def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@register.filter
def state_label(state: str) -> str:
    return words.STATES[state]["label"]


@register.filter
def state_kind(state: str) -> str:
    return words.STATES[state]["kind"]


@register.filter
def state_words(state: str) -> str:
    return words.STATES[state]["words"]


@register.filter
def outcome_kind(outcome: str) -> str:
    return words.OUTCOMES[outcome]["kind"]


@register.filter
def outcome_words(outcome: str) -> str:
    return words.OUTCOMES[outcome]["words"]


@register.filter
def weight_words(weight: str) -> str:
    return words.WEIGHTS[weight]


@register.filter
def rule_words(rule: str) -> str:
    return words.RULES.get(rule, "")


@register.simple_tag
def moment(at: datetime | float | None, relative: bool = False) -> SafeString | str:
    """A time element: UTC in the page, in the reader's own zone once the page's script has run."""
    if at is None:
        return "–"
    when = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
    return format_html(
        '<time datetime="{}"{}>{} UTC</time>',
        when.astimezone(UTC).isoformat(timespec="seconds"),
        SafeString(" data-relative") if relative else "",
        when.astimezone(UTC).strftime("%Y-%m-%d %H:%M"),
    )
