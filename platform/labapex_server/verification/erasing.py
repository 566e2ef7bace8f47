"""How long what is stored of a job stays, and its deletion: by time, or because its owner asks.

Whatever is said elsewhere, all of a judged job stays for `evidence_days`: until then its verdict may be contested, and neither
side may take the evidence away. What a client asks to be deleted before is deleted then.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import Sum

from labapex.protocol.api import Storage, Stored
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs, erasure
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Erasure, Job
from labapex_server.lib import clock, store
from labapex_server.lib.errors import Conflict
from labapex_server.lib.files import modified_at
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.verification.judgement import weights_path
from labapex_server.verification.models import Challenge, OpenedState, VerdictRecord

log = logging.getLogger(__name__)

BY_OWNER = "its owner asked for it"
_AT_ONCE = 50  # jobs of one round
_CONTESTED_SECONDS = 24 * 3600  # after which it is looked at again whether a contested job was ruled
_LEFT_SECONDS = 24 * 3600  # after which what a dead process left lying is deleted


@dataclass(frozen=True)
class Erased:
    """How much one round deleted."""

    parts: int = 0  # of jobs' data
    files: int = 0  # that no job had
    wheels: int = 0
    left: int = 0  # unfinished uploads and files of dead processes


def evidence_until(job: Job) -> datetime | None:
    """Until when everything of a job is needed, whoever asks for its deletion; None while that is not known.

    What nobody judged nobody can contest; what is contested is needed until it is ruled, which nobody can foretell."""
    if not JobState(job.state).ended or job.ended_at is None:
        return None
    if job.disputes.filter(ruled_at=None).exists():
        return clock.after(_CONTESTED_SECONDS)
    judged = VerdictRecord.objects.filter(job=job).exists()
    return job.ended_at + timedelta(days=settings.LABAPEX.evidence_days if judged else 0)


def ask(job: Job) -> Job:
    """Its owner wants a job's data deleted: now, or as soon as nobody can contest its verdict. Raises `Conflict`."""
    until = evidence_until(job)
    if until is None:
        raise Conflict(f"the job is {job.state} and needs its data; stop it first, or wait for its end")
    now = clock.now()
    if until <= now and not _in_hand(job):
        _erase(job, tuple(Stored), BY_OWNER)
    else:
        Job.objects.filter(pk=job.pk, erase_after=None).update(erase_after=max(until, now))
        jobs.touch(job.pk)
    return Job.objects.get(pk=job.pk)


def forget_files(owner: User) -> int:
    """Delete an account's files that no job needs; ended jobs that nobody can contest let go of theirs. Returns how many."""
    ended = Job.objects.filter(owner=owner).exclude(ended_at=None).exclude(erasures__what=Stored.FILES.value)
    now, forgotten = clock.now(), 0
    for job in ended:
        if _may_go(job, now):
            forgotten += erasure.let_go(job, BY_OWNER)
    return forgotten + erasure.forget_unheld(owner)


def erase_due(now: datetime) -> Erased:
    """One round of deletion, of a bounded number of jobs. Any number of processes may, and each may die at any moment."""
    done = 0
    for job, parts, reason in _due(now):
        _erase(job, parts, reason)
        done += 1
        if done == _AT_ONCE:
            break
    files = wheels = 0
    if days := settings.LABAPEX.files_days:
        before = now - timedelta(days=days)
        files, wheels = erasure.forget_unwanted(before), erasure.forget_wheels(before)
    left = blobs.forget_unfinished(now.timestamp()) + _forget_left(now.timestamp())
    Session.objects.filter(expire_date__lt=now).delete()
    erased = Erased(done, files, wheels, left)
    if erased != Erased():
        log.info("deleted: %s", erased)
    return erased


def storage(owner: User) -> Storage:
    """What an account's data takes."""
    config = settings.LABAPEX
    states = OpenedState.objects.filter(lease__job__owner=owner).aggregate(bytes=Sum("size"))["bytes"]
    verified = Lease.objects.filter(job__owner=owner, verdicts__isnull=False).distinct()
    verified = verified.exclude(job__erasures__what=Stored.RESULTS.value)
    return Storage(
        files=Blob.objects.filter(owner=owner).count(),
        files_bytes=blobs.stored_bytes(owner),
        unfinished_bytes=blobs.unfinished_bytes(owner),
        states_bytes=states or 0,
        weights_bytes=sum(store.size(weights_path(lease, config.home)) or 0 for lease in verified.only("id")),
        limit_bytes=config.account_bytes,
        files_days=config.files_days,
        states_days=config.states_days,
        results_days=config.results_days,
    )


def _due(now: datetime) -> Iterator[tuple[Job, tuple[Stored, ...], str]]:
    for job in Job.objects.filter(erase_after__lte=now):
        if _may_go(job, now):
            yield job, tuple(Stored), BY_OWNER
    for part in Stored:
        days = getattr(settings.LABAPEX, f"{part.value}_days")
        if days:
            over = Job.objects.filter(ended_at__lt=now - timedelta(days=days)).exclude(erasures__what=part.value)
            for job in over.order_by("ended_at"):
                if _may_go(job, now):
                    yield job, (part,), f"the job ended {days:g} days before, which is how long they are kept"


def _may_go(job: Job, now: datetime) -> bool:
    until = evidence_until(job)
    return until is not None and until <= now and not _in_hand(job)


def _in_hand(job: Job) -> bool:
    """Whether a host has not heard yet that the job is over: until then it adds to what is stored."""
    return Lease.objects.filter(job=job, state__in=LIVE).exists()


def _erase(job: Job, parts: tuple[Stored, ...], reason: str) -> None:
    """Delete parts of an ended job's data. What dies on the way is done again: the note comes last."""
    gone = set(Erasure.objects.filter(job=job).values_list("what", flat=True))
    for part in parts:
        if part.value in gone:
            continue
        if part is Stored.FILES:
            erasure.let_go(job, reason)
            continue
        for lease in Lease.objects.filter(job=job):
            _states(lease) if part is Stored.STATES else _results(lease)
        erasure.note(job, part, reason)
    if set(parts) == set(Stored):
        Job.objects.filter(pk=job.pk).update(erase_after=None)


def _states(lease: Lease) -> None:
    for state in OpenedState.objects.filter(lease=lease):
        store.delete(state.path)
        state.delete()
    for drawn in Challenge.objects.filter(lease=lease):
        store.delete(drawn.chunks_path)


def _results(lease: Lease) -> None:
    telemetry.forget(lease)
    store.delete(weights_path(lease, settings.LABAPEX.home))


def _forget_left(now: float) -> int:
    """Uploads of hosts, and folders of replays, whose process died."""
    home: Path = settings.LABAPEX.home
    forgotten = 0
    for path in (*home.glob("leases/*/incoming/*"), *home.glob("leases/*/states/.*")):
        if (at := modified_at(path)) is not None and now - at > _LEFT_SECONDS:
            path.unlink(missing_ok=True)
            forgotten += 1
    for folder in home.glob("work/*"):  # a stage that takes longer is killed
        longest = settings.LABAPEX.longest_task_seconds
        if (at := modified_at(folder)) is not None and now - at > _LEFT_SECONDS + longest:
            shutil.rmtree(folder, ignore_errors=True)
            forgotten += 1
    return forgotten
