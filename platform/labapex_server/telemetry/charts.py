"""Reading a run: by the page that follows it, bounded and by cursor, and whole by the verifier.

A cursor is `<lease>:<frames seen>:<job version seen>`. It is all that a viewer has to remember: whoever brings it gets
everything since, once and in order, from whichever process, after whatever break.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import FloatField, OuterRef, Subquery

from labapex.protocol.api import Events, JobView
from labapex.protocol.records import Console, Sample, uncolumn
from labapex.protocol.states import LeaseState
from labapex.protocol.verdict import RuleResult
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Refused
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Leaf, Log

PAGE_POINTS = 20_000
PAGE_TEXT = 1 << 20
"""Losses and characters of console in one page; a page holds whole frames, so that one frame may go over."""


@dataclass(frozen=True)
class Cursor:
    """How far a viewer has seen. No lease: nothing yet."""

    lease: UUID | None = None
    seq: int = 0
    version: int = -1

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises `Refused` for what is no cursor of ours. The empty text is the beginning."""
        if not text:
            return cls()
        try:
            lease, seq, version = text[:100].split(":")
            cursor = cls(UUID(lease) if lease else None, int(seq), int(version))
        except ValueError:
            raise Refused("this is not a cursor; leave it out to begin at the beginning") from None
        if not (0 <= cursor.seq < 2**63 and -1 <= cursor.version < 2**63):
            raise Refused("this is not a cursor; leave it out to begin at the beginning")
        return cursor

    def __str__(self) -> str:
        return f"{self.lease or ''}:{self.seq}:{self.version}"


@dataclass(frozen=True)
class Piece:
    """What one frame adds to a page."""

    seq: int
    first: int
    losses: tuple[float | None, ...]
    samples: tuple[Sample, ...]
    console: tuple[Console, ...]

    @property
    def points(self) -> int:
        return len(self.losses) + len(self.samples)

    @property
    def text(self) -> int:
        return sum(len(line.text) for line in self.console)

    @classmethod
    def of(cls, seq: int, first: int, losses: bytes | memoryview, extras: dict[str, Any]) -> Piece:
        return cls(
            seq=seq,
            first=first,
            losses=tuple(value if math.isfinite(value) else None for value in uncolumn(bytes(losses))),
            samples=tuple(Sample.model_construct(**sample) for sample in extras.get("samples", ())),
            console=tuple(Console.model_construct(**line) for line in extras.get("console", ())),
        )


@dataclass(frozen=True)
class Standing:
    """What a page says about a job besides its log."""

    lease: UUID | None  # the one whose log is shown: the latest
    job: JobView
    version: int
    rules: tuple[RuleResult, ...]

    @classmethod
    def of(cls, job: Job) -> Standing:
        latest = Lease.objects.filter(job=job).order_by("-granted_at")
        lease = latest.select_related("verdict", "challenge").first()
        verdict, challenge = getattr(lease, "verdict", None), getattr(lease, "challenge", None)
        rules = verdict.document["rules"] if verdict else challenge.rules if challenge else ()
        return cls(
            lease=None if lease is None else lease.pk,
            job=jobs.view(job),
            version=job.version,
            rules=tuple(RuleResult.model_validate(rule) for rule in rules),
        )


def length(lease: UUID) -> int:
    """How many frames of a lease's log are held."""
    return Log.objects.filter(pk=lease).values_list("seq", flat=True).first() or 0


def pieces(lease: UUID, since: int) -> list[Piece]:
    """The frames of a lease from number `since` on, as many as a page holds."""
    rows = Frame.objects.filter(log=lease, seq__gte=since).order_by("seq")
    fields = rows.values_list("seq", "first", "losses", "extras")
    return list(page(Piece.of(*row) for row in fields.iterator(chunk_size=200)))


def full(new: Sequence[Piece]) -> bool:
    """Whether a page of these pieces had no room for more."""
    return sum(piece.points for piece in new) >= PAGE_POINTS or sum(piece.text for piece in new) >= PAGE_TEXT


def page(following: Iterable[Piece]) -> Iterator[Piece]:
    """The first of these pieces, until a page is full."""
    points = text = 0
    for piece in following:
        if points >= PAGE_POINTS or text >= PAGE_TEXT:
            return
        points += piece.points
        text += piece.text
        yield piece


def compose(standing: Standing, cursor: Cursor, new: Sequence[Piece]) -> Events:
    """What a viewer with this cursor is told. `new` are the pieces from `start(standing, cursor)` on."""
    seq = start(standing, cursor)
    after = Cursor(standing.lease, new[-1].seq + 1 if new else seq, standing.version)
    return Events(
        cursor=str(after),
        restarted=cursor.lease is not None and cursor.lease != standing.lease,
        job=standing.job,
        first=next((piece.first for piece in new if piece.losses), new[0].first if new else 0),
        losses=tuple(loss for piece in new for loss in piece.losses),
        samples=tuple(sample for piece in new for sample in piece.samples),
        console=tuple(line for piece in new for line in piece.console),
        rules=standing.rules if cursor.version != standing.version else (),
    )


def start(standing: Standing, cursor: Cursor) -> int:
    """The first frame that a viewer with this cursor has not seen."""
    return cursor.seq if cursor.lease == standing.lease else 0


def events(job: Job, cursor: str) -> Events:
    """What is new of a job since a cursor, one page of it; raises `Refused` for a cursor that is none.

    There may be more: ask again with the cursor that came back until it stays the same."""
    seen, standing = Cursor.parse(cursor), Standing.of(job)
    new = [] if standing.lease is None else pieces(standing.lease, start(standing, seen))
    return compose(standing, seen, new)


# -- whole runs, for the verifier --------------------------------------------------------------------------------------


def losses(lease: Lease) -> list[float]:
    """Every loss of a run, in order, bit-exact."""
    return _column(lease, "losses")


def times(lease: Lease) -> list[float]:
    """The worker's time at the end of each iteration, Unix seconds."""
    return _column(lease, "times")


def _column(lease: Lease, name: str) -> list[float]:
    rows = Frame.objects.filter(log=lease.pk).order_by("seq").values_list(name, flat=True)
    return [value for column in rows.iterator(chunk_size=1000) for value in uncolumn(bytes(column))]


def samples(lease: Lease) -> list[Sample]:
    """Every reading of the device, in the order of arrival."""
    rows = Frame.objects.filter(log=lease.pk).order_by("seq").values_list("extras", flat=True)
    return [
        Sample.model_validate(sample)
        for extras in rows.iterator(chunk_size=1000)
        for sample in extras.get("samples", ())
    ]


def script_failure(lease: Lease) -> str | None:
    """The error with which the script ended, as the last frame of the log tells it; None for a script that did not."""
    extras = Frame.objects.filter(log=lease.pk).order_by("-seq").values_list("extras", flat=True).first()
    return (extras or {}).get("failure")


def stalled(now: datetime) -> list[Lease]:
    """Running leases that have not logged an iteration for a long time, measured by the pace of the preflight."""
    least = settings.LABAPEX.stall_seconds
    latest = Subquery(
        Frame.objects.filter(log=OuterRef("pk"), n__gt=0).order_by("-seq").values("received_at")[:1],
        output_field=FloatField(),
    )
    waiting = Lease.objects.filter(
        state=LeaseState.RUNNING.value, key_released_at__lt=now - timedelta(seconds=least)
    ).select_related("job", "worker")
    found: list[Lease] = []
    for lease in waiting.annotate(latest=latest):
        quiet = now.timestamp() - (lease.latest or 0.0)
        if quiet > max(least, 50 * (lease.job.iteration_seconds or 0.0)):
            found.append(lease)
    return found


def leaves(lease: Lease) -> list[Leaf]:
    """Every commitment with its time of receipt; `Leaf.record` is it as on the wire."""
    return list(Leaf.objects.filter(log=lease.pk).order_by("index"))
