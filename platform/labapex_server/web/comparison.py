"""Several runs side by side: what was asked of them differently, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labapex.protocol.api import JobView
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.telemetry import summaries
from labapex_server.telemetry.stints import parts
from labapex_server.web import reads, words
from labapex_server.web.templatetags.labapex import credits, number

MOST = 8
LATEST = 50  # iterations


@dataclass(frozen=True)
class Row:
    name: str
    cells: list[str]


def table(compared: Sequence[Job]) -> list[Row]:
    """The settings that are not the same for all, then results."""
    specs = [dict(_flat(job.job_spec.model_dump(mode="json", exclude={"name"}))) for job in compared]
    names = dict.fromkeys(name for spec in specs for name in spec)
    rows = [Row(name, [spec.get(name, "–") for spec in specs]) for name in names]
    results = [_results(jobs.view(job), job) for job in compared]
    return [row for row in rows if len(set(row.cells)) > 1] + [
        Row(name, [result[name] for result in results]) for name in results[0]
    ]


def _flat(fields: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{name}.")
        elif isinstance(value, list):
            yield within + name, " ".join(map(str, value)) or "–"
        else:
            yield within + name, "–" if value is None else str(value)


def _results(view: JobView, job: Job) -> dict[str, str]:
    lease = reads.current_lease(job)
    run = parts(lease) if lease else ()
    end = summaries.curve(run, 0, 0, 1).end
    latest = summaries.curve(run, max(0, end - LATEST), end, 1)
    whole = summaries.curve(run, 0, end, 1)
    until = view.ended_at or job.state_changed_at.timestamp()
    return {
        "state": words.STATES[view.state]["label"],
        "verdict": view.verdict or "–",
        "iterations": number(view.progress.iterations),
        f"loss, mean of the last {LATEST}": _figure(latest.mean),
        "least loss": _figure(whole.least),
        "cost, credits": credits(view.cost),
        "from start to end": f"{until - view.started_at:,.0f} s" if view.started_at and view.ended_at else "–",
        "worker": view.worker or "–",
        "device": view.device or "–",
    }


def _figure(values: Sequence[float | None]) -> str:
    found = next((value for value in values if value is not None), None)
    return "–" if found is None else f"{found:.5g}"
