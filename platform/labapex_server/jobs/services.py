"""What can happen to a job. `advance` is the only writer of its state."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from labapex.errors import NotEnoughCredit
from labapex.executable import seal_index
from labapex.protocol.api import JobRequest
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Parent
from labapex.protocol.manifest import Index, IndexEntry
from labapex.protocol.spec import MAX_FILES, PARENTS, Bundle, JobSpec, Part
from labapex.protocol.states import Fault, JobState
from labapex.sealing import new_key
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs, limits, states
from labapex_server.jobs.models import Blob, Job, Transition
from labapex_server.jobs.signals import advanced
from labapex_server.jobs.view import view
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import KeyReused, Refused, TooLarge

__all__ = [
    "advance",
    "claim",
    "content_key",
    "find",
    "package",
    "release_claim",
    "renew_claim",
    "say",
    "submit",
    "touch",
    "view",
]


def find(owner: User, job_id: UUID) -> Job | None:
    """A job of this owner; another's does not exist for him."""
    return Job.objects.filter(owner=owner, pk=job_id).first()


def submit(
    owner: User, *, request: JobRequest, parents: Sequence[Parent] = (), idempotency_key: str | None = None
) -> Job:
    """Accept a job whose files were uploaded. The same key with the same request gives the same job.

    `parents` are the models that the request says it starts from, found and uploaded; their files travel with its data.
    Raises `Refused` for a bundle that does not fit the spec and for limits that cannot be tried here, `NotEnoughCredit`,
    `KeyReused`.
    """
    spec = request.spec
    if len(parents) != len(spec.start_from):
        raise ValueError("the models that a job starts from must be found before it is submitted")
    _check_bundle(spec, request.bundle)
    limits.check(spec)
    bundle = Bundle(
        code=_sorted(request.bundle.code), data=_sorted((*request.bundle.data, *_parent_parts(owner, parents)))
    )
    asked = {"spec": spec.model_dump(mode="json"), "bundle": bundle.model_dump(mode="json")}
    if idempotency_key is not None:
        before = Job.objects.filter(owner=owner, idempotency_key=idempotency_key).first()
        if before is not None:
            return _same(before, asked)
    _check_amounts(bundle)
    if spec.budget_micro < spec.epochs:
        raise NotEnoughCredit(
            f"budget too small: {ledger.credits_text(spec.budget_micro)} credits for {spec.epochs} epochs is less than"
            " the smallest price; raise it"
        )
    available = ledger.balance(ledger.account_of(owner)).available
    if available < spec.budget_micro:
        raise NotEnoughCredit(
            f"the budget is {ledger.credits_text(spec.budget_micro)} credits and {ledger.credits_text(available)} are"
            " available; lower the budget or top up the account"
        )
    now = clock.now()
    try:
        with transaction.atomic():
            accounts.lock(owner)  # against those who delete files that no job has
            _check_blobs(owner, bundle)
            job = Job.objects.create(
                owner=owner,
                name=spec.name,
                budget=spec.budget_micro,
                idempotency_key=idempotency_key,
                created_at=now,
                turn_at=now,
                state_changed_at=now,
                parents=[parent.model_dump(mode="json") for parent in parents],
                **asked,
            )
            Transition.objects.create(job=job, before="", after=job.state, reason="", at=now)
            _announce(job.pk, JobState.SUBMITTED)
    except IntegrityError:
        return _same(Job.objects.get(owner=owner, idempotency_key=idempotency_key), asked)
    return job


@transaction.atomic
def advance(job: Job, to: JobState, *, reason: str = "", fault: Fault | None = None, **fields: Any) -> bool:
    """Move a job from the state that `job` was read in. False: someone was first, and nothing was changed.

    Ends the claim on the former state, writes the audit trail, gives an open hold back where the new state is an end,
    and sends `advanced` after commit. `job` is read anew. Raises `ValueError` for a move that is not in the table.
    """
    before = JobState(job.state)
    if not states.allowed(before, to):
        raise ValueError(f"a job may not go from {before} to {to}")
    now = clock.now()
    if before.ended:  # it is resumed, and waits from now on
        fields["turn_at"] = now
    changed = Job.objects.filter(pk=job.pk, state=before.value).update(
        state=to.value,
        reason=reason,
        fault=fault.value if fault else "",
        claimed_by="",
        claimed_until=None,
        stage_attempts=0,
        rung_at=None,
        version=F("version") + 1,
        state_changed_at=now,
        ended_at=(job.ended_at or now) if to.ended else None,
        **fields,
    )
    if changed:
        Transition.objects.create(job=job, before=before.value, after=to.value, reason=reason, at=now)
    job.refresh_from_db()
    if not changed:
        return False
    if to.ended and job.hold is not None:
        ledger.void(job.hold)  # closed already where the job was settled
    _announce(job.pk, to)
    return True


def touch(job_id: UUID) -> None:
    """Something visible of a job changed that is not its state."""
    Job.objects.filter(pk=job_id).update(version=F("version") + 1)


def say(job: Job, reason: str) -> bool:
    """Say more of why a job is in its state. False: it is in another one by now."""
    still = Job.objects.filter(pk=job.pk, state=job.state, state_changed_at=job.state_changed_at)
    return bool(still.update(reason=reason, version=F("version") + 1))


# -- claims: who works on a job's present state ------------------------------------------------------------------------


def claim(job_id: UUID, state: JobState, owner: str, seconds: float) -> Job | None:
    """The job, claimed for `owner` for so long; None where it is not in this state or someone else works on it."""
    now = clock.now()
    changed = (
        Job.objects.filter(pk=job_id, state=state.value)
        .filter(Q(claimed_until=None) | Q(claimed_until__lt=now))
        .update(
            claimed_by=owner, claimed_until=now + timedelta(seconds=seconds), stage_attempts=F("stage_attempts") + 1
        )
    )
    return Job.objects.get(pk=job_id) if changed else None


def renew_claim(job_id: UUID, state: JobState, owner: str, seconds: float) -> bool:
    """Prolong a claim. False: it is lost, and so is the work."""
    until = clock.after(seconds)
    return bool(Job.objects.filter(pk=job_id, state=state.value, claimed_by=owner).update(claimed_until=until))


def release_claim(job_id: UUID, owner: str) -> None:
    Job.objects.filter(pk=job_id, claimed_by=owner).update(claimed_by="", claimed_until=None)


# -- packaging ---------------------------------------------------------------------------------------------------------


def package(job: Job) -> bool:
    """Seal what is the same in every executable of this job: its index, under a fresh content key.

    The job's files were sealed at upload, each under its own key; the index holds these keys."""
    began = time.perf_counter()
    key = new_key()
    entries = tuple(
        IndexEntry(path=part.path, digest=part.digest, size=part.size, key=blobs.content_key(blob).hex())
        for part, blob in parts(job)
    )
    sealed = seal_index(Index(entries=entries), key)
    wrapped = keys.wrap(key, content_purpose(job))
    elapsed = (time.perf_counter() - began) * 1000
    return advance(
        job,
        JobState.QUEUED,
        wrapped_content_key=wrapped,
        sealed_index=sealed,
        package_ms=elapsed,
        reason="waits for a worker",
    )


def content_key(job: Job) -> bytes:
    """The key that opens section 0 of the job's executables."""
    if job.wrapped_content_key is None:
        raise ValueError(f"job {job.pk} was not packaged")
    return keys.unwrap(job.wrapped_content_key, content_purpose(job))


def parts(job: Job) -> list[tuple[Part, Blob]]:
    """The job's files in the order of its executable's sections 1 .. n: code, then data."""
    files = job.files
    listed = [*files.code, *files.data]
    found = {b.digest: b for b in Blob.objects.filter(owner_id=job.owner_id, digest__in={p.digest for p in listed})}
    return [(part, found[part.digest]) for part in listed]


def code_digest(bundle: Bundle) -> str:
    """Of the canonical list of code parts."""
    return digest([part.model_dump(mode="json") for part in bundle.code])


def data_digest(bundle: Bundle) -> str:
    """Of the canonical list of data parts."""
    return digest([part.model_dump(mode="json") for part in bundle.data])


def content_purpose(job: Job) -> str:
    return f"content:{job.pk}"


# -- checks ------------------------------------------------------------------------------------------------------------


def _check_amounts(bundle: Bundle) -> None:
    config = settings.LABAPEX
    code, data = (sum(part.size for part in parts) for parts in (bundle.code, bundle.data))
    if code > config.code_limit_bytes:
        raise TooLarge(f"the code has {code} bytes; at most {config.code_limit_bytes} are accepted")
    if data > config.data_limit_bytes:
        raise TooLarge(f"the data has {data} bytes; at most {config.data_limit_bytes} are accepted")


def _check_bundle(spec: JobSpec, bundle: Bundle) -> None:
    if spec.script not in {part.path for part in bundle.code}:
        raise Refused(f"script: {spec.script} is not among the uploaded code files")
    if bundle.data and spec.data is None:
        raise Refused("data: files were uploaded as data, but the spec names no data folder")
    if spec.data is not None and not bundle.data:
        raise Refused(f"data: the folder {spec.data} is named, but no file in it was uploaded")
    for part in bundle.data:
        if spec.data is not None and PurePosixPath(spec.data) not in PurePosixPath(part.path).parents:
            raise Refused(f"data: {part.path} does not lie in the data folder {spec.data}")
    if len(bundle.data) + len(spec.start_from) > MAX_FILES:
        raise Refused(f"data: at most {MAX_FILES} files are accepted, models to start from among them")
    paths = [part.path for part in (*bundle.code, *bundle.data)]
    if spec.start_from and (taken := [path for path in paths if PurePosixPath(path).parts[0] == PARENTS]):
        raise Refused(f"bundle: {taken[0]} lies where the models come that the job starts from; rename that folder")
    files = set(paths)
    if len(files) != len(paths):
        raise Refused("bundle: two files have the same path")
    for path in paths:
        if any(str(parent) in files for parent in PurePosixPath(path).parents):
            raise Refused(f"bundle: {path} lies in a folder that is itself a file")


def _parent_parts(owner: User, parents: Sequence[Parent]) -> list[Part]:
    sizes = dict(
        Blob.objects.filter(owner=owner, digest__in={parent.weights for parent in parents}).values_list(
            "digest", "size"
        )
    )
    return [Part(path=each.path, digest=each.weights, size=sizes[each.weights]) for each in parents]


def _check_blobs(owner: User, bundle: Bundle) -> None:
    listed = (*bundle.code, *bundle.data)
    sizes = dict(
        Blob.objects.filter(owner=owner, digest__in={part.digest for part in listed}).values_list("digest", "size")
    )
    missing = [part.path for part in listed if part.digest not in sizes]
    if missing:
        raise Refused(f"bundle: {len(missing)} files were not uploaded yet, among them {missing[0]}; upload them first")
    wrong = [part.path for part in listed if sizes[part.digest] != part.size]
    if wrong:
        raise Refused(f"bundle: {wrong[0]} has another size than was uploaded")


def _same(before: Job, asked: dict[str, Any]) -> Job:
    if {"spec": before.spec, "bundle": before.bundle} != asked:
        raise KeyReused("this idempotency key was used for another job; choose a new one")
    return before


def _sorted(files: Iterable[Part]) -> tuple[Part, ...]:
    return tuple(sorted(files, key=lambda part: part.path))


def _announce(job_id: UUID, state: JobState) -> None:
    transaction.on_commit(lambda: advanced.send_robust(sender=Job, job_id=job_id, state=state))
