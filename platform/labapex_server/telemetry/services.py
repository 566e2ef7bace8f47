"""What can happen to a lease's log: it is opened, grows, ends, and is read."""

from __future__ import annotations

import threading
from uuid import UUID

from django.db import transaction

from labapex.errors import Tampered
from labapex.protocol.frames import Ack, Data, Fin, FinAck, Nack, Open, Welcome, fin_bytes, genesis
from labapex.protocol.states import LeaseState
from labapex.sealing import verify
from labapex_server.lib.errors import Refused
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import ingest as core
from labapex_server.telemetry.charts import events, leaves, losses, samples, script_failure, stalled, times
from labapex_server.telemetry.ingest import Gap, Refuse, Terms
from labapex_server.telemetry.models import Frame, Log, Observed, Summary
from labapex_server.telemetry.observations import observations, observe
from labapex_server.telemetry.signals import progressed
from labapex_server.telemetry.writer import Answer, Submission, TryLater, restore, writer

__all__ = [
    "LogRefused",
    "NotWritten",
    "events",
    "finish",
    "forget",
    "ingest",
    "leaves",
    "losses",
    "observations",
    "observe",
    "samples",
    "script_failure",
    "stalled",
    "submit",
    "times",
    "welcome",
]


_AT_ONCE = 500  # rows that are deleted in one transaction


class LogRefused(Refused):
    """The log breaks its contract, or is not this worker's to write. `breach`: the lease cannot go on."""

    status = 409

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def breach(self) -> bool:
        return self.code not in {"not-running", "wrong-worker"}


class NotWritten(Refused):
    """The database did not take the frame; send it again."""

    status = 503
    code = "try-later"


def welcome(worker: UUID, opening: Open) -> Welcome:
    """What is held of a lease's log. Raises `LogRefused` where this worker has no such live lease."""
    lease = _own(worker, opening.lease, LeaseState.RUNNING, LeaseState.FINISHED)
    terms = Terms.of(lease.terms)
    held, _ = Log.objects.get_or_create(lease=lease, defaults={"head": genesis(lease.pk), "next": terms.start})
    return Welcome(lease=lease.pk, seq=held.seq, next=held.next, head=bytes(held.head))


submit = writer.submit
"""Hand a frame to the process's writer; the answer comes after the commit, in the writer's thread."""


def ingest(worker: UUID, data: Data) -> Ack | Nack:
    """Hand in one frame and wait for its commit. Raises `LogRefused` or `NotWritten`. The gateway uses `submit`."""
    done = threading.Event()
    answers: list[Answer] = []

    def answer(said: Answer) -> None:
        answers.append(said)
        done.set()

    submit(Submission(worker, data, answer))
    done.wait()
    match answers[0]:
        case Refuse(code=code, message=message):
            raise LogRefused(code, message)
        case TryLater():
            raise NotWritten("the frame was not stored; send it again")
        case said:
            return said


def finish(worker: UUID, fin: Fin) -> FinAck | Nack:
    """The log is complete: check the executable's signature over its head, and hand the lease on to verification.

    The same end twice is acknowledged twice. Raises `LogRefused`."""
    with transaction.atomic():
        lease = _own(worker, fin.lease, LeaseState.RUNNING, LeaseState.FINISHED, LeaseState.SETTLED)
        held = Log.objects.select_for_update().filter(pk=lease.pk).first()
        if held is None:
            return Nack(lease=lease.pk, expected=0)
        if held.finished:
            if bytes(held.head) != fin.head:
                raise LogRefused("fork", "another end of this log is held")
            return FinAck(lease=lease.pk)
        if lease.state != LeaseState.RUNNING:
            raise LogRefused("not-running", "this lease is not running")
        terms = Terms.of(lease.terms)
        verdict = core.conclude(terms, restore(terms, held), fin)
        if isinstance(verdict, Gap):
            return verdict.nack
        if isinstance(verdict, Refuse):
            raise LogRefused(verdict.code, verdict.message)
        try:
            verify(
                bytes(lease.signing_key or b""),
                fin_bytes(lease=lease.pk, seq=fin.seq, total=fin.total, head=fin.head),
                fin.signature,
            )
        except Tampered as error:
            raise LogRefused("signature", f"the end of the log: {error}") from None
        changed = Log.objects.filter(pk=held.pk, seq=held.seq, head=held.head, finished=False).update(
            finished=True, fin_signature=fin.signature
        )
        if changed != 1:
            return Nack(lease=lease.pk, expected=held.seq)
        marketplace.finish(lease)
    progressed.send(sender=None, job_id=lease.job_id)
    return FinAck(lease=lease.pk)


def forget(lease: Lease) -> None:
    """Delete what a lease's log holds of its run; head, count and commitments stay: verdict and certificates speak of them."""
    for rows in (
        Frame.objects.filter(log=lease.pk),
        Summary.objects.filter(log=lease.pk),
        Observed.objects.filter(lease=lease),
    ):
        while some := list(rows.values_list("pk", flat=True)[:_AT_ONCE]):
            rows.filter(pk__in=some).delete()


def _own(worker: UUID, lease_id: UUID, *states: LeaseState) -> Lease:
    lease = Lease.objects.filter(pk=lease_id, worker=worker, state__in=[s.value for s in states]).first()
    if lease is None:
        raise LogRefused("not-running", "this lease is not running: it has ended, or it was never this worker's")
    return lease
