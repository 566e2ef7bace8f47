"""Which alerts hold of a job, and what changes in them. Pure.

A condition is raised once for a job. When it no longer holds it has recovered, once too; should it come back, its alert
stands again, and nobody is told a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from labapex.protocol.api import AlertKind
from labapex.protocol.spec import CREDIT
from labapex.protocol.states import JobState
from labapex_server.alerts.trend import BLOCK, BLOCKS, Trend

LASTING = frozenset({AlertKind.BUDGET, AlertKind.ENDED})
"""What cannot recover."""

PASSING = frozenset({AlertKind.STALLED, AlertKind.LOST_CONTACT})
"""What is over where a job has ended. What was said of its losses stays."""


@dataclass(frozen=True)
class Situation:
    """A job as it is now. Money is micro-credits, times are seconds."""

    state: JobState
    reason: str = ""
    trend: Trend = field(default_factory=Trend)
    quiet: float | None = None  # since the last iteration arrived, while one is due
    iteration_seconds: float | None = None  # as the preflight measured it
    lost_contact: bool = False
    cost: int = 0
    budget: int = 0
    share: int = 80  # percent of the budget that is worth a word


def standing(now: Situation) -> dict[AlertKind, str]:
    """What holds of a job, each in words."""
    if now.state.ended:
        because = f": {now.reason}" if now.reason else ""
        return {AlertKind.ENDED: f"the job is {now.state.value}{because}"}
    found: dict[AlertKind, str] = {}
    trend = now.trend
    if trend.not_finite:
        found[AlertKind.NOT_FINITE] = (
            f"the loss of iteration {trend.last_bad} is not a finite number; {trend.bad} of {trend.seen} are not"
        )
    if trend.diverging and trend.limit is not None:
        found[AlertKind.DIVERGING] = (
            f"the loss diverges: the median of {BLOCKS} x {BLOCK} iterations in a row up to {trend.seen} lies above"
            f" {trend.limit:.4g}, after {trend.best:.4g} at its best"
        )
    if now.lost_contact:
        found[AlertKind.LOST_CONTACT] = (
            "the worker is silent; what it trains meanwhile arrives when it is back, or another worker takes the job over"
        )
    elif now.quiet is not None and now.quiet > (patience := trend.patience(now.iteration_seconds)):
        found[AlertKind.STALLED] = (
            f"no new iteration since {trend.seen} for more than {patience:.0f} s, though the worker is there"
        )
    if now.budget and 100 * now.cost >= now.share * now.budget:
        found[AlertKind.BUDGET] = (
            f"{now.cost / CREDIT:g} of {now.budget / CREDIT:g} credits are spent, {now.share} % of the budget and more;"
            " a job never costs more than its budget"
        )
    return found


@dataclass(frozen=True)
class Change:
    """What is new of a job's alerts: `raised` and `recovered` are told, `back` and `over` are only kept."""

    raised: Mapping[AlertKind, str]
    recovered: frozenset[AlertKind]
    back: frozenset[AlertKind]
    over: frozenset[AlertKind]


def change(known: Mapping[AlertKind, tuple[bool, bool]], holds: Mapping[AlertKind, str]) -> Change:
    """`known`: of each alert that was ever raised, whether it stands and whether it has recovered before."""
    ended = AlertKind.ENDED in holds
    gone = {kind for kind, (stands, _) in known.items() if stands and kind not in holds} - LASTING
    gone &= PASSING if ended else gone
    told = frozenset() if ended else frozenset(kind for kind in gone if not known[kind][1])
    return Change(
        raised={kind: words for kind, words in holds.items() if kind not in known},
        recovered=told,
        back=frozenset(kind for kind in holds if kind in known and not known[kind][0]),
        over=frozenset(gone) - told,
    )
