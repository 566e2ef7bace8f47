"""The last stages of a job: what is opened after the worker has committed itself, the replay, the verdict."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.db import transaction

from labapex.errors import MalformedInput
from labapex.proof.challenge import draw
from labapex.protocol.records import Leaf
from labapex.protocol.replay import EpochSample, ReplayReport, ReplayRequest
from labapex.protocol.states import JobState, LeaseState
from labapex.protocol.verdict import SignedVerdict, Verdict
from labapex.sealing import sign
from labapex_server.jobs import services as jobs
from labapex_server.jobs.blobs import Readable
from labapex_server.jobs.models import Job
from labapex_server.lib import childprocess, clock, keys
from labapex_server.lib.errors import Conflict, Missing, NotFinishedYet, Refused
from labapex_server.marketplace.executables import runner_of
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.signals import progressed
from labapex_server.verification import evidence, judgement, openings
from labapex_server.verification.models import Challenge, OpenedState, VerdictRecord
from labapex_server.verification.preflight import fill, preflight

__all__ = [
    "accept_state",
    "challenge",
    "expected_state",
    "forgive_silence",
    "issue",
    "late",
    "preflight",
    "reject_late",
    "signed",
    "verify",
    "weights",
]


def finished_lease(job: Job) -> Lease:
    """The lease whose work is judged. Raises `Conflict` where there is none."""
    lease = (
        Lease.objects.select_related("job", "worker__owner").filter(job=job, state=LeaseState.FINISHED.value).first()
    )
    if lease is None:
        raise Conflict(f"job {job.pk} has no finished lease")
    return lease


# -- the challenge -----------------------------------------------------------------------------------------------------


def challenge(lease: Lease) -> Challenge:
    """Draw what is to be opened, once: after the log is complete, so that the worker could not foresee it."""
    if lease.state != LeaseState.FINISHED.value:
        raise Conflict("a challenge is drawn after the last commitment")
    before = Challenge.objects.filter(lease=lease).first()
    if before is not None:
        return before
    nonce, spec = secrets.token_hex(32), lease.job.job_spec
    found = (lease.job.preflight or {}).get("environment")
    opening = draw(
        lease.terms,
        [leaf.record for leaf in lease.log.leaves.order_by("index")],
        audit_segments=spec.audit_segments,
        top_q=spec.top_q,
        pev_percent=settings.LABAPEX.pev_percent,
        random=random.Random(nonce),  # noqa: S311 - seeded by 256 secret bits, so that the draw can be repeated
        ends=lease.environment != found,
    )
    early = judgement.early(lease, evidence.read(lease), pev_percent=settings.LABAPEX.pev_percent)
    now = clock.now()
    drawn, _ = Challenge.objects.get_or_create(
        lease=lease,
        defaults={
            "nonce": nonce,
            "indices": list(opening.indices),
            "segments": list(opening.segments),
            "compare": list(opening.compare),
            "evaluations": [sample.model_dump(mode="json") for sample in opening.evaluations],
            "rules": [rule.model_dump(mode="json") for rule in early],
            "issued_at": now,
            "deadline": now + timedelta(seconds=settings.LABAPEX.opening_seconds),
        },
    )
    jobs.touch(lease.job_id)
    progressed.send_robust(sender=None, job_id=lease.job_id)
    return drawn


def expected_state(lease: Lease, index: int) -> Leaf:
    """The leaf that an upload must fit. Raises `Missing` if it was not asked for, `Conflict` if it comes too late."""
    drawn = Challenge.objects.filter(lease=lease).first()
    if drawn is None or index not in drawn.indices:
        raise Missing(f"state {index} was not asked for")
    if clock.now() > drawn.deadline:
        raise Conflict("the deadline for opened states has passed")
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
    openings.receive(lease, index, stream, size=leaf.size)
    expected_state(lease, index)  # the deadline counts at the last byte
    _, new = OpenedState.objects.get_or_create(
        lease=lease, index=index, defaults={"size": leaf.size, "received_at": clock.now()}
    )
    jobs.touch(lease.job_id)
    progressed.send_robust(sender=None, job_id=lease.job_id)
    _all_opened(lease)
    return new


def _all_opened(lease: Lease) -> None:
    drawn = Challenge.objects.get(lease=lease)
    if OpenedState.objects.filter(lease=lease).count() < len(drawn.indices):
        return
    job = Job.objects.get(pk=lease.job_id)
    if job.state == JobState.CHALLENGED.value:
        jobs.advance(job, JobState.VERIFYING, reason="the opened segments are replayed")


def forgive_silence() -> int:
    """The platform itself was away: what it asked for may take the usual time from now on. Returns how many had less."""
    until = clock.after(settings.LABAPEX.opening_seconds)
    waiting = Challenge.objects.filter(lease__job__state=JobState.CHALLENGED.value, deadline__lt=until)
    return waiting.update(deadline=until)


def late(now: datetime) -> list[Lease]:
    """Leases whose deadline passed before all was opened."""
    open_ = Challenge.objects.filter(deadline__lt=now, lease__job__state=JobState.CHALLENGED.value)
    return [each.lease for each in open_.select_related("lease__job", "lease__worker")]


def reject_late(lease: Lease) -> None:
    """The worker did not open in time what it had committed to."""
    drawn = Challenge.objects.get(lease=lease)
    opened = _opened(lease)
    missing = sorted(set(drawn.indices) - set(opened))
    if not missing:
        _all_opened(lease)
        return
    problem = (
        f"{len(missing)} of {len(drawn.indices)} states were not opened before the deadline, the first is {missing[0]}"
    )
    given = judgement.verdict(
        lease,
        evidence.read(lease),
        replay=None,
        opening_problem=problem,
        segments=drawn.segments,
        opened=opened,
        weights=None,
        pev_percent=settings.LABAPEX.pev_percent,
    )
    issue(lease, given)


# -- the replay --------------------------------------------------------------------------------------------------------


def verify(lease: Lease, *, beat: Callable[[], None]) -> None:
    """Replay what was opened in a sandboxed child, judge, and issue the verdict. `beat` may raise to stop.

    Raises `ChildFailed` where the child could not do its work: that is no evidence against the worker.
    """
    drawn = Challenge.objects.get(lease=lease)
    record = evidence.read(lease)
    opened = _opened(lease)
    with childprocess.private_folder("replay") as folder:
        fill(lease.job, folder / "work", beat)
        (folder / "states").mkdir(mode=0o700)
        for state in OpenedState.objects.filter(lease=lease):
            shutil.copyfile(state.path, folder / "states" / state.path.name)
            beat()
        contract = lease.terms
        request = ReplayRequest(
            contract=contract,
            segments=tuple(drawn.segments),
            compare=tuple(drawn.compare),
            evaluations=tuple(EpochSample.model_validate(each) for each in drawn.evaluations),
            digests={index: record.leaves[index].state for index in opened},
        )
        replay = childprocess.run(
            "replay",
            folder,
            request=request,
            report=ReplayReport,
            threads=contract.threads,
            seconds=settings.LABAPEX.replay_seconds,
            beat=beat,
            runner=runner_of(lease),
        )
        weights = None if replay.problem else _keep_weights(lease, folder / "weights.safetensors")
    given = judgement.verdict(
        lease,
        record,
        replay=replay,
        opening_problem=None,
        segments=drawn.segments,
        opened=opened,
        weights=weights,
        pev_percent=settings.LABAPEX.pev_percent,
    )
    issue(lease, given)


def _opened(lease: Lease) -> list[int]:
    return list(OpenedState.objects.filter(lease=lease).order_by("index").values_list("index", flat=True))


def _keep_weights(lease: Lease, made: Path) -> str | None:
    """Keep the result that the replay extracted from the final state; its SHA-256, or None where it made none."""
    try:
        source = childprocess.open_hostile(made, limit=settings.LABAPEX.result_limit_bytes)
    except MalformedInput:
        return None  # the verdict has no weights then, and `pull` says so
    settings.LABAPEX.private_folder("leases", str(lease.pk))
    final = judgement.weights_path(lease, settings.LABAPEX.home)
    temporary = final.with_name(f".weights.{secrets.token_hex(8)}")
    digest = hashlib.sha256()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source, os.fdopen(descriptor, "wb") as target:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            target.write(chunk)
        target.flush()
        os.fsync(target.fileno())
    temporary.rename(final)
    return digest.hexdigest()


# -- the verdict -------------------------------------------------------------------------------------------------------


@transaction.atomic
def issue(lease: Lease, verdict: Verdict) -> bool:
    """Sign a verdict and put it on record, and let money move. False: one was given before, which stands."""
    job = Job.objects.get(pk=lease.job_id)
    if VerdictRecord.objects.filter(lease=lease).exists() or JobState(job.state) not in (
        JobState.CHALLENGED,
        JobState.VERIFYING,
    ):
        return False
    if not jobs.advance(job, JobState.SETTLING, reason=f"{verdict.verdict}: {verdict.reason}"):
        return False
    VerdictRecord.objects.create(
        lease=lease,
        job=job,
        document=verdict.model_dump(mode="json"),
        key_id=keys.key_id(keys.verdict_public_key()),
        signature=sign(keys.verdict_key(), verdict),
        issued_at=clock.now(),
    )
    return True


def signed(job: Job) -> SignedVerdict:
    """The job's verdict. Raises `NotFinishedYet`."""
    record = VerdictRecord.objects.filter(job=job).order_by("-issued_at").first()
    if record is None:
        raise NotFinishedYet(
            f"the job is {job.state} and has no verdict" + ("" if JobState(job.state).ended else " yet")
        )
    return SignedVerdict(
        verdict=Verdict.model_validate(record.document), key_id=record.key_id, signature=bytes(record.signature)
    )


def weights(job: Job) -> tuple[Path, str]:
    """The result of a verified job and its SHA-256. Raises `NotFinishedYet` or `Refused`."""
    verdict = signed(job).verdict
    if verdict.verdict != "verified":
        raise Refused("the job was rejected: nothing was paid, and there is no result")
    if JobState(job.state) is not JobState.VERIFIED:
        raise NotFinishedYet("the job is being settled; ask again in a moment")
    lease = Lease.objects.get(pk=verdict.lease)
    path = judgement.weights_path(lease, settings.LABAPEX.home)
    if verdict.weights is None or not path.exists():
        raise Missing("the script kept no weights that could be extracted from its final state")
    return path, verdict.weights
