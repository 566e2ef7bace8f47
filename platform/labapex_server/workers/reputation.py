"""What a worker's past says of it: one number with its reasons, from what was found and from nothing that anybody says.

The rule is that of volunteer computing (BOINC's adaptive replication): trust is earned by results that were verified one after
another, and lost by a single false one. A new worker has no more of it than one that lied, so that a new name buys nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from labapex_server.workers.models import Finding, Mark, Worker

TRUSTED_AFTER = 10  # verified jobs in a row


@dataclass(frozen=True)
class Reputation:
    """`in_a_row`: jobs verified since it was last found false, not opened or banned. The others count all that there was."""

    verified: int = 0
    in_a_row: int = 0
    false: int = 0
    unopened: int = 0
    lost: int = 0

    @property
    def trusted(self) -> bool:
        return self.in_a_row >= TRUSTED_AFTER

    @property
    def fallen(self) -> bool:
        """Whether it was found false, or did not open what it was to, and has not regained trust."""
        return not self.trusted and bool(self.false or self.unopened)

    @property
    def reliability(self) -> float:
        """The share of its leases that it brought to their end; 1 where it had none."""
        ended = self.verified + self.false + self.unopened
        return ended / (ended + self.lost) if ended + self.lost else 1.0

    @property
    def score(self) -> int:
        """0 to 100: how near it is to being trusted, times its reliability."""
        return round(100 * min(self.in_a_row, TRUSTED_AFTER) / TRUSTED_AFTER * self.reliability)

    @property
    def reasons(self) -> str:
        """What the score follows from, in words."""
        if self == Reputation():
            return "new: nothing of it was judged yet"
        row = f"{self.in_a_row} verified in a row" + ("" if self.trusted else f", trusted after {TRUSTED_AFTER}")
        others = ((self.false, "proven false"), (self.unopened, "not opened"), (self.lost, "lost"))
        said = "; ".join([row, *(f"{count} {what}" for count, what in others if count)])
        return f"trusted: {said}" if self.trusted else said

    def __str__(self) -> str:
        return f"{self.score} of 100 ({self.reasons})"


_JUDGED = (Finding.VERIFIED.value, Finding.FALSE.value, Finding.UNOPENED.value)


def as_ruled(marks: Iterable[tuple[str, UUID | None]]) -> list[str]:
    """The findings that count, of (finding, lease) pairs, the oldest first: of what was said about one lease the last word.

    A lease that was judged false and then ruled honest counts as verified where it was judged; one that was verified and then
    ruled false counts as false from then on, and as verified no more."""
    found: list[str] = []
    place: dict[UUID, int] = {}
    gone: set[int] = set()
    for finding, lease in marks:
        before = place.get(lease) if lease is not None else None
        if finding == Finding.REVERSED.value:
            if before is not None:
                found[before] = Finding.VERIFIED.value
            continue
        if lease is not None and finding in _JUDGED:
            if before is not None:
                gone.add(before)
            place[lease] = len(found)
        found.append(finding)
    return [finding for number, finding in enumerate(found) if number not in gone]


def fold(findings: Iterable[str]) -> Reputation:
    """The reputation that follows from findings, the oldest first."""
    counts, row = dict.fromkeys(Finding, 0), 0
    for finding in map(Finding, findings):
        counts[finding] += 1
        if finding is Finding.VERIFIED:
            row += 1
        elif finding not in (Finding.LOST, Finding.REVERSED):
            row = 0
    return Reputation(
        verified=counts[Finding.VERIFIED],
        in_a_row=row,
        false=counts[Finding.FALSE],
        unopened=counts[Finding.UNOPENED],
        lost=counts[Finding.LOST],
    )


def of(worker: Worker, *, until: datetime | None = None) -> Reputation:
    """A worker's reputation now, or as it was at `until`."""
    marks = Mark.objects.filter(worker=worker)
    known = marks if until is None else marks.filter(at__lte=until)
    return fold(as_ruled(known.order_by("pk").values_list("finding", "lease")))


def of_each(workers: Iterable[Worker]) -> dict[UUID, Reputation]:
    """The reputation of each of these workers, in one query."""
    found: dict[UUID, list[tuple[str, UUID | None]]] = {worker.pk: [] for worker in workers}
    marks = Mark.objects.filter(worker__in=found).order_by("pk")
    for worker, finding, lease in marks.values_list("worker_id", "finding", "lease"):
        found[worker].append((finding, lease))
    return {worker: fold(as_ruled(marks)) for worker, marks in found.items()}
