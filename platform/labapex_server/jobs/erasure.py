"""What of jobs' data was deleted, and the deletion of what the jobs of an account, or of all, have in common: files and wheels.

A job lets go of its files; they go when no other job of the account has them. When that may be is not decided here
(`verification.erasing`): a job may still be judged or contested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.db.models import QuerySet

from labapex.protocol.api import Stored
from labapex.protocol.manifest import Manifest
from labapex.protocol.requirements import Lock
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.jobs import packages, supply
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Blob, Erasure, Job, KeptWheel
from labapex_server.lib import clock, store
from labapex_server.lib.errors import Gone

_AT_ONCE = 500


def require(job: Job, *parts: Stored) -> None:
    """Raise `Gone` where one of these parts of a job's data was deleted."""
    for erasure in Erasure.objects.filter(job=job, what__in=[part.value for part in parts]).order_by("at"):
        raise Gone(f"the {erasure.what} of this job were deleted on {erasure.at:%Y-%m-%d}: {erasure.reason}")


def note(job: Job, what: Stored, reason: str) -> None:
    """Put on record that a part of a job's data is deleted."""
    Erasure.objects.get_or_create(job=job, what=what.value, defaults={"reason": reason, "at": clock.now()})
    jobs.touch(job.pk)


@transaction.atomic
def let_go(job: Job, reason: str) -> int:
    """Delete code and data of a job that no other job of its owner has. Returns how many files that were.

    Its packages go when no job has them (`forget_wheels`)."""
    accounts.lock(job.owner)
    note(job, Stored.FILES, reason)
    Job.objects.filter(pk=job.pk).update(sealed_index=None, wrapped_content_key=None)
    files = job.files
    digests = {part.digest for part in (*files.code, *files.data)} - _held(job.owner)
    return _delete(Blob.objects.filter(owner=job.owner, digest__in=digests))


@transaction.atomic
def forget_unheld(owner: User) -> int:
    """Delete an account's files that no job has. Returns how many that were."""
    accounts.lock(owner)
    held = _held(owner)
    return _delete([blob for blob in Blob.objects.filter(owner=owner) if blob.digest not in held])


def forget_unwanted(before: datetime) -> int:
    """Delete files that no job has and nobody wanted since. Returns how many; a number at a time."""
    found = defaultdict(list)
    for blob in Blob.objects.filter(wanted_at__lt=before).select_related("owner").order_by("wanted_at")[:_AT_ONCE]:
        found[blob.owner].append(blob)
    forgotten = 0
    for owner, stale in found.items():
        with transaction.atomic():
            accounts.lock(owner)
            held = _held(owner)
            here = Blob.objects.filter(pk__in=[blob.pk for blob in stale])
            here.filter(digest__in=held).update(wanted_at=clock.now())  # looked at again when it has become old again
            forgotten += _delete(here.filter(wanted_at__lt=before))
    return forgotten


@transaction.atomic
def forget_wheels(before: datetime) -> int:
    """Delete packages that no job has and none was locked to since. Returns how many; a number at a time."""
    old = KeptWheel.objects.select_for_update().filter(wanted_at__lt=before).order_by("wanted_at")[:_AT_ONCE]
    stale = {wheel.sha256 for wheel in old}
    if not stale:
        return 0
    held = stale & _held_wheels()
    KeptWheel.objects.filter(sha256__in=held).update(wanted_at=clock.now())
    for sha256 in stale - held:
        store.delete(packages.place(sha256))
    KeptWheel.objects.filter(sha256__in=stale - held).delete()
    return len(stale - held)


def _held(owner: User) -> set[str]:
    """Digests of the files of the owner's jobs that were not let go of."""
    bundles = _with_files().filter(owner=owner).values_list("bundle", flat=True)
    return {part["digest"] for bundle in bundles.iterator() for part in (*bundle["code"], *bundle["data"])}


def _held_wheels() -> set[str]:
    locks = _with_files().exclude(requirements=None).values_list("requirements", flat=True)
    held = {wheel.sha256 for lock in locks.iterator() for wheel in Lock.model_validate(lock).wheels}
    held |= {wheel.sha256 for supplied in supply.locked() for wheel in supplied.packages.wheels}
    manifests = _with_files().filter(ended_at=None).values_list("leases__manifest", flat=True)
    for manifest in filter(None, manifests.iterator()):  # a lease keeps the torch that it was given
        torch = Manifest.model_validate(manifest).torch
        held |= {wheel.sha256 for wheel in torch.packages.wheels} if torch else set()
    return held


def _with_files() -> QuerySet[Job]:
    return Job.objects.exclude(erasures__what=Stored.FILES.value)


def _delete(found: Iterable[Blob]) -> int:
    """File and row, within a transaction that has the owner's lock: a store that is silent leaves the row for the next round."""
    count = 0
    for blob in found:
        store.delete(blob.path)
        blob.delete()
        count += 1
    return count
