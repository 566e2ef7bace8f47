"""One thread in a process that commits frames, many at a time.

A transaction a frame costs a disk flush a frame, and flushes are what a database has least of. So connections hand
their frames in and go on reading; the thread takes all that wait, decides about them with `ingest.receive`, writes them
in one transaction, and only then answers. Acknowledged therefore means: on disk.

For each lease the transaction begins with a compare-and-set of what the log held when the decision was made. No row
changed means that another process was first, that the log is finished, or that the lease is no longer running: nothing
of that lease is written then, and it is decided again on what the database says.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Sum
from django.db.models.functions import Length

from labapex.protocol.frames import Ack, Data, Nack, genesis
from labapex.protocol.records import FrameBody, finite
from labapex.protocol.states import LeaseState
from labapex.sealing import open_frame
from labapex_server.lib import clock, metrics
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import ingest, storage
from labapex_server.telemetry.ingest import Accept, Again, Gap, LogState, Refuse, Terms
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.telemetry.signals import progressed
from labapex_server.telemetry.storage import Move, Row
from labapex_server.telemetry.summaries import summarise

log = logging.getLogger(__name__)

GROUP_FRAMES = 512
GROUP_BYTES = 16 << 20
CACHED_LEASES = 1024

FREE_BYTES = 64 << 20
BYTES_PER_SECOND = 64 << 10
BYTES_PER_ITERATION = 256
BYTES_PER_LEAF = 1024
"""What a lease may store besides its losses and leaves, at once and as time goes by: room for any honest console."""


@dataclass(frozen=True)
class TryLater:
    """The database did not take it. Nothing is held; the sender sends again."""


Answer = Ack | Nack | Refuse | TryLater


@dataclass(frozen=True)
class Submission:
    worker: UUID
    data: Data
    answer: Callable[[Answer], None]  # called once, in the writer's thread, after the commit


@dataclass(frozen=True)
class Entry:
    """What the writer remembers of one running lease."""

    lease: UUID
    job: UUID
    worker: UUID
    terms: Terms
    run_key: bytes = field(repr=False)
    state: LogState
    stored: int  # bytes of payload
    began: float  # Unix time
    beat: float = 0  # when the lease was last prolonged

    def allowance(self, now: float) -> int:
        """Bytes of payload that this lease may have stored by now."""
        return int(
            FREE_BYTES
            + BYTES_PER_SECOND * max(0.0, now - self.began)
            + BYTES_PER_ITERATION * self.state.next
            + BYTES_PER_LEAF * self.state.leaves
        )


@dataclass(frozen=True)
class Outcome:
    """What was decided about one lease's part of a group. `after`: as it is once that is committed; None: nothing to commit."""

    before: Entry
    after: Entry | None
    accepted: list[tuple[Data, FrameBody]]
    answers: list[tuple[Submission, Answer]]


class Writer:
    """The thread. `submit` from anywhere; answers come in the order of submission for each lease."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Submission | None] = queue.SimpleQueue()
        self._entries: OrderedDict[UUID, Entry] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, submission: Submission) -> None:
        """Hand one frame in. The caller limits how many of its frames are in flight."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
            self._queue.put(submission)

    def stop(self) -> None:
        """Commit what was handed in and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()

    def forget(self) -> None:
        """Know nothing but what the database says, as a new process does."""
        self._entries.clear()

    def _run(self) -> None:
        try:
            ending = False
            while not ending:
                group, ending = self._take()
                self.write(group)
        finally:
            connection.close()

    def _take(self) -> tuple[list[Submission], bool]:
        group: list[Submission] = []
        size = 0
        item = self._queue.get()
        while item is not None:
            group.append(item)
            size += len(item.data.payload)
            if len(group) >= GROUP_FRAMES or size >= GROUP_BYTES:
                return group, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def write(self, group: list[Submission]) -> None:
        """Commit a group and answer it. A group that fails is tried lease by lease, so that none spoils another."""
        leases: dict[UUID, list[Submission]] = {}
        for submission in group:
            leases.setdefault(submission.data.lease, []).append(submission)
        if not leases:
            return
        began = time.monotonic()
        try:
            self._commit(leases)
            metrics.COMMIT_SECONDS.observe(time.monotonic() - began)
            metrics.COMMIT_FRAMES.observe(len(group))
        except Exception:  # a driver's error, whatever its type: the senders must hear of it, and the thread must live
            log.exception("a group of %d frames of %d leases was not written", len(group), len(leases))
            connection.close()
            for lease in leases:
                self._entries.pop(lease, None)
            if len(leases) > 1:
                for submissions in leases.values():
                    self.write(submissions)
            else:
                _answer([(submission, TryLater()) for submission in group])

    def _commit(self, leases: dict[UUID, list[Submission]]) -> None:
        now = clock.now()
        with transaction.atomic():
            outcomes, over = self._outcomes(leases, now.timestamp())
            ended = [(submission, _ended(lease, submission)) for lease in over for submission in leases[lease]]
            _insert([frame for outcome in outcomes for frame in outcome.accepted], now.timestamp())
            entries = [outcome.after for outcome in outcomes if outcome.after is not None]
            for outcome in outcomes:
                if outcome.after is not None:
                    summarise(outcome.before.lease, outcome.before.state.next, outcome.after.state.next)
            due = {entry.lease for entry in entries if now.timestamp() - entry.beat >= 1}
            if due:
                Lease.objects.filter(pk__in=due, state=LeaseState.RUNNING.value).update(
                    heartbeat_at=now, expires_at=clock.after(settings.LABAPEX.lease_seconds)
                )
        for entry in entries:
            self._remember(replace(entry, beat=now.timestamp()) if entry.lease in due else entry)
        metrics.POINTS.inc(sum(data.n for outcome in outcomes for data, _ in outcome.accepted))
        _answer([*ended, *(answer for outcome in outcomes for answer in outcome.answers)])
        for job in {entry.job for entry in entries}:
            progressed.send(sender=None, job_id=job)

    def _remember(self, entry: Entry) -> None:
        self._entries[entry.lease] = entry
        self._entries.move_to_end(entry.lease)
        while len(self._entries) > CACHED_LEASES:
            self._entries.popitem(last=False)

    def _outcomes(self, leases: dict[UUID, list[Submission]], now: float) -> tuple[list[Outcome], Set[UUID]]:
        """Decide all leases' frames and move their logs on; and the leases that do not run, or not here.

        A log that was not as it was remembered is decided about again, on what the database says."""
        settled: list[Outcome] = []
        left, over = set(leases), set[UUID]()
        for _ in range(2):
            decided: list[Outcome] = []
            for lease in sorted(left):  # one order in all processes, so that two writers seldom wait for each other
                before = self._entries.get(lease) or load(lease)
                if before is None:
                    over.add(lease)
                else:
                    decided.append(_decide(before, leases[lease], now))
            moved = _advance(decided)
            left.clear()
            for outcome in decided:
                if outcome.after is None or outcome.before.lease in moved:
                    settled.append(outcome)
                else:
                    self._entries.pop(outcome.before.lease, None)
                    left.add(outcome.before.lease)
        return settled, over | left


def _ended(lease: UUID, submission: Submission) -> Answer:
    """What to say about a frame of a lease that does not run, or not here: what is held is acknowledged still."""
    held = Log.objects.filter(pk=lease, lease__worker=submission.worker, seq__gt=submission.data.seq).first()
    if held is not None:
        return Ack(lease=lease, seq=held.seq - 1, head=bytes(held.head))
    return Refuse("not-running", "this lease is not running: it has ended, or it was never this worker's")


def load(lease: UUID) -> Entry | None:
    """What the database holds of a lease that runs; None: it does not."""
    row = Lease.objects.filter(pk=lease, state=LeaseState.RUNNING.value).first()
    if row is None or row.key_released_at is None:
        return None
    terms = Terms.of(row.terms)
    held, _ = Log.objects.get_or_create(lease=row, defaults={"head": genesis(lease), "next": terms.start})
    if held.finished:
        return None
    return Entry(
        lease=lease,
        job=row.job_id,
        worker=row.worker_id,
        terms=terms,
        run_key=marketplace.run_key(row),
        state=restore(terms, held),
        stored=Frame.objects.filter(log=held).aggregate(bytes=Sum(Length("payload")))["bytes"] or 0,
        began=row.key_released_at.timestamp(),
    )


def restore(terms: Terms, held: Log) -> LogState:
    """The state of a log from its rows."""
    last = Leaf.objects.filter(log=held).order_by("-index").first()
    columns: list[bytes] = []
    start = terms.start if last is None else last.step
    for first, losses in (
        Frame.objects.filter(log=held, first__gte=start - 4096, n__gt=0).order_by("seq").values_list("first", "losses")
    ):
        columns.append(bytes(losses)[max(0, 8 * (start - first)) :])
    return LogState.restore(
        terms,
        seq=held.seq,
        next=held.next,
        head=bytes(held.head),
        last=None if last is None else last.record,
        losses=b"".join(columns),
        series=held.series,
    )


def _decide(before: Entry, submissions: list[Submission], now: float) -> Outcome:
    entry = before
    answers: list[tuple[Submission, Answer]] = []
    accepted: list[tuple[Data, FrameBody]] = []
    for submission in submissions:
        data = submission.data
        if submission.worker != entry.worker:
            answers.append((submission, Refuse("wrong-worker", "this lease belongs to another worker")))
            continue
        decision = ingest.receive(entry.terms, entry.state, data, partial(open_frame, entry.run_key))
        match decision:
            case Accept(state=state, body=body):
                stored = entry.stored + len(data.payload)
                if stored > entry.allowance(now):
                    answers.append((submission, Refuse("flood", f"more than {entry.allowance(now)} bytes of log")))
                    continue
                entry = replace(entry, state=state, stored=stored)
                accepted.append((data, body))
                answers.append((submission, state.ack(entry.lease)))
            case Again(ack=ack):
                answers.append((submission, ack))
            case Gap(nack=nack):
                answers.append((submission, nack))
            case Refuse():
                answers.append((submission, decision))
    return Outcome(before, entry if accepted else None, accepted, answers)


def _advance(decided: Iterable[Outcome]) -> frozenset[UUID]:
    """Move the logs on of which something was accepted. Returns the leases whose log was as the decision saw it."""
    moves, series = [], {}
    for outcome in decided:
        before, after = outcome.before, outcome.after
        if after is not None:
            was, becomes = before.state, after.state
            moves.append(Move(before.lease, before.worker, was.seq, was.head, becomes.seq, becomes.next, becomes.head))
            if becomes.series != was.series:
                series[before.lease] = sorted(becomes.series)
    moved = storage.advance(moves)
    for lease in moved & series.keys():
        Log.objects.filter(pk=lease).update(series=series[lease])
    return moved


def _insert(accepted: Iterable[tuple[Data, FrameBody]], now: float) -> None:
    rows, leaves = [], []
    for data, body in accepted:
        rows.append(
            Row(
                data.lease,
                data.seq,
                data.first,
                data.n,
                data.prev,
                data.hash,
                data.payload,
                body.losses,
                body.times,
                _extras(body),
                now,
            )
        )
        leaves += [
            Leaf(log_id=data.lease, digest=leaf.digest(), received_at=now, **leaf.model_dump()) for leaf in body.leaves
        ]
    storage.insert(rows)
    if leaves:
        Leaf.objects.bulk_create(leaves)


def _extras(body: FrameBody) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if body.samples:
        extras["samples"] = [_storable(sample.model_dump(exclude_defaults=True)) for sample in body.samples]
    if body.console:
        extras["console"] = [_storable(line.model_dump()) for line in body.console]
    if body.series:
        extras["series"] = [
            {"name": each.name, "iterations": each.iterations, "values": finite(each.values)} for each in body.series
        ]
    if body.failure is not None:
        extras.update(_storable({"failure": body.failure}))
    return extras


def _storable(fields: dict[str, Any]) -> dict[str, Any]:
    """PostgreSQL's jsonb takes no NUL in a text."""
    return {k: v.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(v, str) else v for k, v in fields.items()}


def _answer(answers: list[tuple[Submission, Answer]]) -> None:
    for submission, answer in answers:
        submission.answer(answer)
    for kind, count in Counter(_ANSWERS[type(answer)] for _, answer in answers).items():
        metrics.FRAMES.labels(kind).inc(count)
    metrics.FRAME_BYTES.inc(sum(len(submission.data.payload) for submission, _ in answers))


_ANSWERS: dict[type, str] = {Ack: "ack", Nack: "nack", Refuse: "refused", TryLater: "later"}


writer = Writer()
"""The process's own."""
