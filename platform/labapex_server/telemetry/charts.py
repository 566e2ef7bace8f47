"""Reading a run: by the page that follows it, bounded and by cursor, and whole by the verifier.

A cursor is `<lease>:<frames seen>:<job version seen>`. It is all that a viewer has to remember: whoever brings it gets
everything since, once and in order, from whichever process, after whatever break.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import FloatField, OuterRef, Subquery

from labapex.protocol.api import Events, HandoverView, JobView, SeriesView
from labapex.protocol.records import Console, Sample, finite, uncolumn
from labapex.protocol.states import LeaseState
from labapex.protocol.verdict import RuleResult
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Refused
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.telemetry.stints import Part, cut, parts

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
    series: tuple[SeriesView, ...]

    @property
    def points(self) -> int:
        return len(self.losses) + len(self.samples) + sum(len(each.iterations) for each in self.series)

    @property
    def text(self) -> int:
        return sum(len(line.text) for line in self.console)

    def beyond(self, have: int) -> Piece:
        """The same to a viewer who has a drawing of the losses before iteration `have`."""
        return replace(self, losses=()) if self.losses and self.first + len(self.losses) <= have else self

    @classmethod
    def of(cls, seq: int, first: int, losses: bytes, extras: dict[str, Any], stop: int | None) -> Piece:
        """`stop`: iteration from which on another log counts. A point there was told before anything of that was done."""
        return cls(
            seq=seq,
            first=first,
            losses=tuple(finite(losses)),
            samples=tuple(map(_sample, extras.get("samples", ()))),
            console=tuple(Console.model_construct(**line) for line in extras.get("console", ())),
            series=tuple(_until(stop, **each) for each in extras.get("series", ())),
        )


def _until(stop: int | None, name: str, iterations: list[int], values: list[float | None]) -> SeriesView:
    """The points of a series up to iteration `stop`."""
    count = len(iterations) if stop is None else bisect_right(iterations, stop)
    return SeriesView.model_construct(name=name, iterations=tuple(iterations[:count]), values=tuple(values[:count]))


def _together(pieces: Iterable[SeriesView]) -> tuple[SeriesView, ...]:
    """One of each name; where two have a point of one iteration, the later one's."""
    found: dict[str, dict[int, float | None]] = {}
    for each in pieces:
        found.setdefault(each.name, {}).update(zip(each.iterations, each.values, strict=True))
    return tuple(
        SeriesView(name=name, iterations=tuple(points), values=tuple(points.values()))
        for name, points in found.items()
        if points
    )


def _sample(stored: dict[str, Any]) -> Sample:
    """Checked when it came; JSON has no tuples."""
    return Sample.model_construct(**{**stored, "throttled": tuple(stored.get("throttled", ()))})


@dataclass(frozen=True)
class Standing:
    """What a page says about a job besides its log."""

    lease: UUID | None  # the one whose run is shown: the latest
    parts: tuple[Part, ...]  # the logs that the run consists of
    handovers: tuple[HandoverView, ...]
    job: JobView
    version: int
    rules: tuple[RuleResult, ...]

    @classmethod
    def of(cls, job: Job) -> Standing:
        latest = Lease.objects.filter(job=job).order_by("-granted_at")
        lease = latest.select_related("challenge", "worker").first()
        verdict = None if lease is None else lease.verdicts.filter(stands=True).first()
        challenge = getattr(lease, "challenge", None)
        rules = verdict.document["rules"] if verdict else challenge.rules if challenge else ()
        return cls(
            lease=None if lease is None else lease.pk,
            parts=() if lease is None else parts(lease),
            handovers=() if lease is None else handovers(lease),
            job=jobs.view(job),
            version=job.version,
            rules=tuple(RuleResult.model_validate(rule) for rule in rules),
        )


def handovers(lease: Lease) -> tuple[HandoverView, ...]:
    """Where the run of a lease went from one host to another."""
    earlier = parts(lease)[:-1]
    if not earlier:
        return ()
    names = dict(Lease.objects.filter(pk__in=[each.lease for each in earlier]).values_list("pk", "worker__name"))
    hosts = [*(names[each.lease] for each in earlier), lease.worker.name]
    return tuple(
        HandoverView(iteration=each.stop or 0, before=a, after=b)
        for each, (a, b) in zip(earlier, pairwise(hosts), strict=True)
    )


def length(run: Sequence[Part]) -> int:
    """How many frames of a run are held."""
    if not run:
        return 0
    grows = run[-1].lease if run[-1].count is None else None
    held = Log.objects.filter(pk=grows).values_list("seq", flat=True).first() or 0
    return held + sum(part.count or 0 for part in run)


def pieces(run: Sequence[Part], since: int, have: int = 0) -> list[Piece]:
    """The frames of a run from number `since` on, as many as a page holds. They are counted over all of its logs.

    Losses before iteration `have` are left out: the viewer has a drawing of them."""
    return list(page(_pieces(run, since, have)))


def _pieces(run: Sequence[Part], since: int, have: int) -> Iterator[Piece]:
    begin = 0
    for part in run:
        frames = part.frames().filter(seq__gte=max(0, since - begin))
        for seq, first, losses, extras in frames.values_list("seq", "first", "losses", "extras").iterator(
            chunk_size=200
        ):
            (column,) = cut([(first, bytes(losses))], part.stop)
            if first + len(column) // 8 <= have:
                column = b""
            yield Piece.of(begin + seq, first, column, extras, part.stop)
        begin += part.count or 0


def series(run: Sequence[Part]) -> tuple[SeriesView, ...]:
    """Every series that a run's script tells, whole."""
    return _together(each for piece in _pieces(run, 0, 2**62) for each in piece.series)


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
    seq, kept = _place(standing, cursor)
    after = Cursor(standing.lease, new[-1].seq + 1 if new else seq, standing.version)
    return Events(
        cursor=str(after),
        restarted=kept is not None,
        kept=kept or 0,
        job=standing.job,
        first=next((piece.first for piece in new if piece.losses), new[0].first if new else 0),
        losses=tuple(loss for piece in new for loss in piece.losses),
        samples=tuple(sample for piece in new for sample in piece.samples),
        console=tuple(line for piece in new for line in piece.console),
        series=_together(each for piece in new for each in piece.series),
        rules=standing.rules if cursor.version != standing.version else (),
        handovers=standing.handovers,
    )


def start(standing: Standing, cursor: Cursor) -> int:
    """The first frame that a viewer with this cursor has not seen."""
    return _place(standing, cursor)[0]


def _place(standing: Standing, cursor: Cursor) -> tuple[int, int | None]:
    """The first frame that a viewer has not seen, and how many of the iterations that it has seen still count: None: all.

    Who has followed an earlier host of the run goes on behind what counts of it, and so does who has followed a run that was
    stopped."""
    if cursor.lease is None:
        return 0, None
    if cursor.lease == standing.lease:
        last = standing.parts[-1]
        end = sum(part.count or 0 for part in standing.parts)
        cut = last.stop is not None and cursor.version != standing.version and cursor.seq >= end
        return (end, last.stop) if cut else (cursor.seq, None)
    end = 0
    for part in standing.parts[:-1]:
        end += part.count or 0
        if part.lease == cursor.lease:
            return min(cursor.seq, end), part.stop if cursor.seq > end - 1 else None
    return 0, 0


def events(job: Job, cursor: str) -> Events:
    """What is new of a job since a cursor, one page of it; raises `Refused` for a cursor that is none.

    There may be more: ask again with the cursor that came back until it stays the same."""
    seen, standing = Cursor.parse(cursor), Standing.of(job)
    new = pieces(standing.parts, start(standing, seen))
    return compose(standing, seen, new)


# -- whole runs, for the verifier --------------------------------------------------------------------------------------


def losses(lease: Lease) -> list[float]:
    """Every loss of a run, in order, bit-exact."""
    return _column(lease, "losses")


def times(lease: Lease) -> list[float]:
    """The worker's time at the end of each iteration, Unix seconds."""
    return _column(lease, "times")


def _column(lease: Lease, name: str) -> list[float]:
    found: list[float] = []
    for part in parts(lease):
        rows = part.frames().values_list("first", name).iterator(chunk_size=1000)
        for column in cut(((first, bytes(each)) for first, each in rows), part.stop):
            found += uncolumn(column)
    return found


def samples(lease: Lease) -> list[Sample]:
    """Every reading of the devices, in the order of arrival."""
    return [
        Sample.model_validate(sample)
        for part in parts(lease)
        for extras in part.frames().values_list("extras", flat=True).iterator(chunk_size=1000)
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
    """Every commitment of a run with its time of receipt; `Leaf.record` is it as on the wire."""
    return [leaf for part in parts(lease) for leaf in part.leaves()]
