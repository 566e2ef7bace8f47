"""What the database says, for Prometheus. Every process tells the same: scrape all, and take the greatest."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta

from django.conf import settings
from django.db import DatabaseError
from django.db.models import Count, Min, Sum
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from labapex.protocol.states import JobState
from labapex_server.jobs.models import Blob, Job
from labapex_server.ledger import audit
from labapex_server.ledger.models import HELD, Transfer
from labapex_server.lib import clock, trust
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.pipeline.models import Tally
from labapex_server.pulse.checks import checks
from labapex_server.verification.models import OpenedState
from labapex_server.workers.models import Finding, Mark, Worker

KEPT_SECONDS = 10.0


class Books(Collector):
    """Reads at most every `KEPT_SECONDS`. A database that does not answer leaves all but the checks out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._read: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read before somebody asks

    def collect(self) -> Iterator[Metric]:
        yield _checks()
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_SECONDS:
                try:
                    self._read = list(_read())
                except DatabaseError:
                    self._read = []
                self._read_at = time.monotonic()
            yield from self._read


def _checks() -> Metric:
    family = GaugeMetricFamily("labapex_ready", "1 while a check of /readyz passes.", labels=("check",))
    for check in checks():
        family.add_metric((check.name,), 0.0 if check.problem else 1.0)
    return family


def _read() -> Iterator[Metric]:
    yield from _jobs()
    yield _labelled("labapex_leases", "Live leases.", "state", _counts(Lease, "state", LIVE))
    yield _labelled("labapex_workers", "Hosts: enrolled, connected, paused, banned.", "state", _workers())
    yield _labelled("labapex_findings", "What leases showed of hosts.", "finding", _counts(Mark, "finding", Finding))
    yield from _tallies()
    yield from _money()
    stored = {
        "files": Blob.objects.aggregate(bytes=Sum("sealed_size"))["bytes"] or 0,
        "states": OpenedState.objects.aggregate(bytes=Sum("size"))["bytes"] or 0,
    }
    yield _labelled("labapex_stored_bytes", "Of clients' files and of states, as the books have them.", "kind", stored)
    disk = os.statvfs(settings.LABAPEX.home)
    yield _one("labapex_disk_free_bytes", "Where the home is.", disk.f_bavail * disk.f_frsize)
    expires = trust.current().document.expires_at
    yield _one("labapex_trust_expires_timestamp_seconds", "When the trust document ends.", expires)


def _jobs() -> Iterator[Metric]:
    found = dict(Job.objects.order_by().values_list("state").annotate(Count("pk")))
    yield _labelled("labapex_jobs", "Jobs by state.", "state", {s.value: found.get(s.value, 0) for s in JobState})
    waiting = [state.value for state in JobState if not state.ended]
    oldest = Job.objects.filter(state__in=waiting).order_by().values_list("state").annotate(Min("state_changed_at"))
    since, now = dict(oldest), clock.now()
    ages = {state: (now - since[state]).total_seconds() if state in since else 0.0 for state in waiting}
    yield _labelled("labapex_job_oldest_seconds", "For how long the oldest job is in this state.", "state", ages)


def _workers() -> dict[str, float]:
    seen = clock.now() - timedelta(seconds=settings.LABAPEX.lease_seconds)
    found: Counter[str] = Counter()
    for last, banned, paused in Worker.objects.values_list("last_seen_at", "banned", "paused").iterator():
        connected = last is not None and last > seen
        found["enrolled"] += 1
        found["banned"] += banned
        found["connected"] += connected
        found["paused"] += connected and bool(paused)
    return {state: float(found[state]) for state in ("enrolled", "connected", "paused", "banned")}


def _tallies() -> Iterator[Metric]:
    names = ("task", "outcome")
    runs = CounterMetricFamily("labapex_task_runs", "The pipeline's tasks, by how they ended.", labels=names)
    spent = CounterMetricFamily("labapex_task_seconds", "What they took.", labels=names)
    last = GaugeMetricFamily("labapex_task_last_timestamp_seconds", "When one ended so last.", labels=names)
    for tally in Tally.objects.all():
        labels = (tally.task, tally.outcome)
        runs.add_metric(labels, tally.count)
        spent.add_metric(labels, tally.seconds)
        last.add_metric(labels, tally.last_at.timestamp())
    yield from (runs, spent, last)


def _money() -> Iterator[Metric]:
    found = audit.audit()
    ended = Job.objects.exclude(ended_at=None).values("pk")
    forgotten = Transfer.objects.filter(status=HELD, job__in=ended).aggregate(held=Sum("amount"))["held"] or 0
    wrong = {"escrow": abs(found.escrow), "overdrawn": found.overdrawn, "held-for-ended-jobs": forgotten}
    yield _labelled(
        "labapex_ledger_wrong_micro_credits", "What the book must not have: 0 at every moment.", "what", wrong
    )
    yield _one("labapex_ledger_circulating_micro_credits", "What users have.", found.circulating)
    yield _one("labapex_ledger_held_micro_credits", "Of it, held for jobs.", found.held)


def _counts(model: type[Lease] | type[Mark], column: str, values: Iterable[str]) -> dict[str, float]:
    wanted = [str(value) for value in values]
    found = dict(
        model._default_manager.filter(**{f"{column}__in": wanted}).order_by().values_list(column).annotate(Count("pk"))
    )
    return {value: float(found.get(value, 0)) for value in wanted}


def _labelled(name: str, words: str, label: str, values: dict[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=(label,))
    for value, amount in values.items():
        family.add_metric((value,), amount)
    return family


def _one(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)
