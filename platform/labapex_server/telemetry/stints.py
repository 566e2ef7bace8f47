"""One run on several hosts: which frames of whose log count, and how they are put together.

A host that was lost may have logged more than what another one goes on from: what it logged from there on is superseded, is
shown no more and counts nowhere. Frames are cut between iterations; readings and console of a frame stay with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

from django.db.models import QuerySet

from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Leaf


@dataclass(frozen=True)
class Part:
    """The log of one lease, as far as it counts for a run."""

    lease: UUID
    stop: int | None = None  # iteration from which on it counts no more: another host's does, or the run was stopped
    count: int | None = None  # frames with something that counts; None: it may still grow

    def frames(self) -> QuerySet[Frame]:
        """Those of its frames with something that counts, in order."""
        every = Frame.objects.filter(log=self.lease).order_by("seq")
        return every if self.stop is None else every.filter(first__lt=self.stop)

    def leaves(self) -> QuerySet[Leaf]:
        """Those of its commitments that count, in order."""
        every = Leaf.objects.filter(log=self.lease).order_by("index")
        return every if self.stop is None else every.filter(step__lte=self.stop)


def parts(lease: Lease) -> tuple[Part, ...]:
    """The logs that a lease's run consists of, its own last."""
    handovers = lease.contract.get("handovers", ())
    run = [Part(UUID(handover["lease"]), handover["leaf"]["step"]) for handover in handovers]
    if run[-1:] == [] or run[-1].lease != lease.pk:  # else its host is gone, and what counts of it is told there
        run.append(Part(lease.pk, lease.terms.until if lease.contract.get("stopped") else None))
    return tuple(part if part.stop is None else replace(part, count=part.frames().count()) for part in run)


def cut(rows: Iterable[tuple[int, bytes]], stop: int | None) -> Iterator[bytes]:
    """The float64 columns of frames that begin with some iteration each, up to iteration `stop`."""
    for first, column in rows:
        yield column if stop is None else column[: max(0, 8 * (stop - first))]
