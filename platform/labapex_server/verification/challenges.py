"""What a worker is asked to show after it has committed itself: rounds, deadlines, and what came.

    round 0    one chunk of the parameters of every state that the host keeps     platform draws, worker uploads
    round 1    the states that are drawn once the chunk ranks the updates          platform draws, worker uploads
    round 2 ..  states that doubts ask for after a replay (`labapex.proof.doubts`)

Each step is one compare-and-swap on the challenge's row, so a platform that was killed goes on from there.
"""

from __future__ import annotations

import io
import random
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from labapex.errors import MalformedInput
from labapex.proof import chunks, statefile
from labapex.proof.challenge import draw, draw_chunk
from labapex.proof.chunks import Measured
from labapex.proof.evidence import Further
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Weight
from labapex_server.jobs import services as jobs
from labapex_server.jobs.blobs import Readable
from labapex_server.jobs.models import Job
from labapex_server.lib import clock, store
from labapex_server.lib.errors import Conflict, Missing
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.signals import progressed
from labapex_server.verification import audit, evidence, judgement, openings, stopping
from labapex_server.verification.evidence import Record
from labapex_server.verification.models import Challenge, OpenedState
from labapex_server.verification.signals import answered
from labapex_server.verification.verdicts import issue


def challenge(lease: Lease) -> Challenge:
    """Take the next step that is ours: ask for a chunk, or, when it came, draw the states. Only after the log is complete, so
    that the worker could foresee neither. Where what it showed is a lie already, the verdict is given instead."""
    if lease.state != LeaseState.FINISHED.value:
        raise Conflict("a challenge is drawn after the last commitment")
    found = Challenge.objects.filter(lease=lease).first() or _begin(lease)
    if found.round == 0 and not found.waiting:
        _draw(lease, found)
        found.refresh_from_db()
    return found


def shown(found: Challenge, record: Record) -> tuple[Measured | None, str | None]:
    """What the chunks show of the updates, and what is wrong with them. None, None: there was no chunk to look at."""
    if found.chunk is None:
        return None, None
    try:
        with store.fetch(found.chunks_path).open("rb") as answer:
            return chunks.check(found.lease.terms, record.leaves, found.chunk, answer), None
    except FileNotFoundError:
        return None, f"chunk {found.chunk} of the parameters was not shown"
    except MalformedInput as error:
        return None, str(error)


def shown_bytes(found: Challenge) -> int:
    return store.size(found.chunks_path) or 0


# -- what the worker sends ---------------------------------------------------------------------------------------------


def expected_chunks(lease: Lease, number: int) -> int | None:
    """The bytes that the answer about a chunk must have; None where it is here already.

    Raises `Missing` if it was not asked for, `Conflict` if it comes too late."""
    found = Challenge.objects.filter(lease=lease).first()
    if found is None or found.chunk != number:
        raise Missing(f"chunk {number} was not asked for")
    if found.round > 0 or not found.waiting:
        return None
    _in_time(found)
    return _own_size(lease.terms, _leaves(lease), number)


def accept_chunks(lease: Lease, number: int, stream: Readable) -> bool:
    """Take in the answer about the chunk; then states are drawn. False: it was here already. Raises `Refused`."""
    size = expected_chunks(lease, number)
    if size is None:
        return False
    found = Challenge.objects.get(lease=lease)
    openings.receive_chunks(found, stream, size=size, held=_held_chunks(lease, number))
    _in_time(found)  # the deadline counts at the last byte
    if not Challenge.objects.filter(pk=found.pk, round=0, waiting=True).update(waiting=False):
        return False
    _tell(lease)
    answered.send_robust(sender=None, job_id=lease.job_id)
    return True


def expected_state(lease: Lease, index: int) -> Leaf:
    """The leaf that an upload must fit. Raises `Missing` if it was not asked for, `Conflict` if it comes too late."""
    found = Challenge.objects.filter(lease=lease).first()
    if found is None or index not in found.all_indices:
        raise Missing(f"state {index} was not asked for")
    _in_time(found)
    if index in lease.terms.held:
        raise Missing(f"state {index} is here already")
    leaf: Leaf = lease.log.leaves.get(index=index).record
    return leaf


def accept_state(lease: Lease, index: int, stream: Readable) -> bool:
    """Take in an opened state; when it is the last one, the job goes on to be verified. False: it was here already.

    Raises `Refused`; what was sent is then forgotten.
    """
    leaf = expected_state(lease, index)
    if OpenedState.objects.filter(lease=lease, index=index).exists():
        _all_opened(lease)
        return False
    openings.receive_state(lease, index, stream, size=leaf.size)
    expected_state(lease, index)  # the deadline counts at the last byte
    _, new = OpenedState.objects.get_or_create(
        lease=lease, index=index, defaults={"size": leaf.size, "received_at": clock.now()}
    )
    _tell(lease)
    _all_opened(lease)
    return new


def opened(lease: Lease) -> list[int]:
    """Leaves whose states are here of those that were asked for."""
    found = Challenge.objects.filter(lease=lease).first()
    return [] if found is None else sorted(openings.here(lease.terms, found.all_indices))


# -- deadlines ---------------------------------------------------------------------------------------------------------


def forgive_silence() -> int:
    """The platform itself was away: what it asked for may take the usual time from now on. Returns how many had less."""
    now, forgiven = clock.now(), 0
    waiting = Challenge.objects.filter(waiting=True, lease__job__state=JobState.CHALLENGED.value)
    for found in waiting.select_related("lease__job"):
        until = _deadline(found.lease, now, found.wanted)
        forgiven += Challenge.objects.filter(pk=found.pk, round=found.round, deadline__lt=until).update(deadline=until)
    return forgiven


def late(now: datetime) -> list[Lease]:
    """Leases whose deadline passed before all was shown."""
    open_ = Challenge.objects.filter(waiting=True, deadline__lt=now, lease__job__state=JobState.CHALLENGED.value)
    return [each.lease for each in open_.select_related("lease__job", "lease__worker")]


def reject_late(lease: Lease) -> None:
    """The worker did not show in time what it had committed to."""
    found = Challenge.objects.get(lease=lease)
    if not found.waiting:
        return
    if lease.terms.stopped is not None:
        stopping.unshown(lease, "what it was asked for did not come before the deadline")
        return
    if lease.excused:
        _excuse(lease)
        return
    came = opened(lease)
    missing = sorted(set(found.all_indices) - set(came))
    if found.round == 0:
        problem = f"chunk {found.chunk} of the parameters was not shown before the deadline"
    elif missing:
        asked = len(found.all_indices)
        problem = f"{len(missing)} of {asked} states were not opened before the deadline, the first is {missing[0]}"
    else:
        _all_opened(lease)
        return
    _reject(lease, found, evidence.read(lease), problem=problem)


def withhold(lease: Lease, reason: str) -> None:
    """The worker says why it cannot show what it is asked for. What it says is shown to people and judged by nobody."""
    found = Challenge.objects.filter(lease=lease, waiting=True).first()
    if found is not None and lease.terms.stopped is not None:
        stopping.unshown(lease, f"it cannot show what it was asked for: {reason}")
    elif found is not None and lease.job.state == JobState.CHALLENGED.value and lease.excused:
        _excuse(lease)
    elif found is not None and lease.job.state == JobState.CHALLENGED.value:
        _reject(lease, found, evidence.read(lease), problem=f"the worker cannot show what it was asked for: {reason}")


def _excuse(lease: Lease) -> None:
    """What a host cannot show is gone by our own fault: nobody is found false, nobody pays."""
    reason = "the platform was restored from a backup, and what the worker had to show is gone; nothing was charged"
    jobs.advance(lease.job, JobState.FAILED, reason=reason, fault=Fault.PLATFORM)


# -- the platform's steps ----------------------------------------------------------------------------------------------


def ask_further(lease: Lease, found: Challenge, more: Further) -> bool:
    """Ask for what doubts name. True: the worker has states to upload, and the job waits for it again."""
    now = clock.now()
    to_come = _to_come(lease, more.indices)
    waits = bool(to_come)
    with transaction.atomic():
        changed = Challenge.objects.filter(pk=found.pk, round=found.round, waiting=False).update(
            round=found.round + 1,
            waiting=waits,
            wanted=to_come,
            further=sorted({*found.further, *more.indices}),
            further_segments=sorted({*found.further_segments, *more.segments}),
            deadline=_deadline(lease, now, more.indices),
        )
        if changed and waits:
            job = Job.objects.get(pk=lease.job_id)
            jobs.advance(job, JobState.CHALLENGED, reason="what was found gives cause to look at further states")
    return waits


def _begin(lease: Lease) -> Challenge:
    nonce, now = secrets.token_hex(32), clock.now()
    number = draw_chunk(lease.terms, random.Random(nonce))  # noqa: S311 - seeded by 256 secret bits
    record = evidence.read(lease)
    answer = None
    try:
        if number is not None and lease.terms.gone:
            answer = _held_chunks(lease, number)
        wanted = chunks.asked(lease.terms, record.leaves) if number is not None else ()
        wanted = tuple(index for index in wanted if index not in lease.terms.held)
        waits = number is not None and _own_size(lease.terms, record.leaves, number) > 0
    except MalformedInput:  # no answer could be right, and the next step says why
        wanted, waits = (), False
    seen = judgement.evidence(lease, record, pev_percent=settings.LABAPEX.pev_percent)
    begun, _ = Challenge.objects.get_or_create(
        lease=lease,
        defaults={
            "chunk_nonce": nonce,
            "chunk": number,
            "waiting": waits,
            "wanted": list(wanted),
            "pev_percent": settings.LABAPEX.pev_percent,
            "ends": lease.environment != (lease.job.preflight or {}).get("environment"),
            "rules": [rule.model_dump(mode="json") for rule in judgement.early(seen)],
            "issued_at": now,
            "deadline": _deadline(lease, now),
        },
    )
    if answer is not None:
        openings.receive_chunks(begun, io.BytesIO(), size=0, held=answer)
    _tell(lease)
    return begun


def _draw(lease: Lease, found: Challenge) -> None:
    """Round 1: which states are opened."""
    record = evidence.read(lease)
    measured, problem = shown(found, record)
    seen = judgement.evidence(lease, record, pev_percent=found.pev_percent, measured=measured, opening_problem=problem)
    early = judgement.early(seen)
    if any(rule.weight is Weight.DECIDES and rule.result == "fail" for rule in early):
        _reject(lease, found, record, problem=problem, measured=measured)
        return
    nonce, now, spec = secrets.token_hex(32), clock.now(), lease.job.job_spec
    segments = audit.drawn(lease)
    opening = draw(
        lease.terms,
        record.leaves,
        measured=measured,
        audit_segments=segments,
        top_q=spec.top_q,
        pev_percent=found.pev_percent,
        random=random.Random(nonce),  # noqa: S311 - seeded by 256 secret bits, so that the draw can be repeated
        ends=found.ends,
    )
    Challenge.objects.filter(pk=found.pk, round=0, waiting=False).update(
        round=1,
        waiting=True,
        nonce=nonce,
        audit_segments=segments,
        indices=list(opening.indices),
        segments=list(opening.segments),
        evaluations=[sample.model_dump(mode="json") for sample in opening.evaluations],
        wanted=_to_come(lease, opening.indices),
        rules=[rule.model_dump(mode="json") for rule in early],
        deadline=_deadline(lease, now, opening.indices),
    )
    _tell(lease)
    _all_opened(lease)  # states that came while it trained need not come again


def _reject(
    lease: Lease, found: Challenge, record: Record, *, problem: str | None, measured: Measured | None = None
) -> None:
    seen = judgement.evidence(lease, record, pev_percent=found.pev_percent, measured=measured, opening_problem=problem)
    given = judgement.verdict(
        lease, seen, drawn=found.audit_segments, opened=opened(lease), shown_bytes=shown_bytes(found), weights=None
    )
    issue(lease, given)


def _all_opened(lease: Lease) -> None:
    found = Challenge.objects.get(lease=lease)
    if found.round == 0 or len(opened(lease)) < len(found.all_indices):
        return
    with transaction.atomic():
        Challenge.objects.filter(pk=found.pk, round=found.round).update(waiting=False)
        job = Job.objects.get(pk=lease.job_id)
        if job.state == JobState.CHALLENGED.value:
            jobs.advance(job, JobState.VERIFYING, reason="the opened segments are replayed")


def _in_time(found: Challenge) -> None:
    if clock.now() > found.deadline:
        raise Conflict("the deadline of the challenge has passed")


def _deadline(lease: Lease, now: datetime, states: Iterable[int] = ()) -> datetime:
    """The usual time, and that of making anew, from the nearest kept one each, those `states` that the host did not keep."""
    terms, preflight = lease.terms, lease.job.preflight or {}
    missing = len(set(states) - terms.kept_leaves())
    iterations = missing * terms.checkpoint_every * (terms.keep_every - 1)
    again = iterations * float(preflight.get("iteration_seconds", 0))
    return now + timedelta(seconds=settings.LABAPEX.opening_seconds + again)


def _leaves(lease: Lease) -> list[Leaf]:
    return [leaf.record for leaf in telemetry.leaves(lease)]


def _to_come(lease: Lease, indices: Iterable[int]) -> list[int]:
    """Those of these states that are not here."""
    return sorted(set(indices) - openings.here(lease.terms, set(indices)))


def _own_size(terms: Contract, leaves: Sequence[Leaf], number: int) -> int:
    """Bytes of an answer about a chunk that the lease's own host is to send."""
    return chunks.answer_size(terms, leaves, number) - chunks.held_size(terms, leaves, number)


def _held_chunks(lease: Lease, number: int) -> bytes:
    """What the platform shows itself of a chunk: from states of earlier hosts."""
    terms, shown = lease.terms, b""
    for path in openings.states(terms, terms.held.intersection(chunks.asked(terms, _leaves(lease)))).values():
        with path.open("rb") as state:
            shown += chunks.show(state, b"".join(statefile.tree(state)), number)
    return shown


def _tell(lease: Lease) -> None:
    jobs.touch(lease.job_id)
    progressed.send_robust(sender=None, job_id=lease.job_id)
