"""What was asked for: uploaded files, jobs, and every change of a job's state."""

from __future__ import annotations

import uuid
from pathlib import Path

from django.conf import settings
from django.db import models

from labapex.protocol.api import Stored
from labapex.protocol.contract import Parent
from labapex.protocol.requirements import Lock
from labapex.protocol.spec import Bundle, JobSpec
from labapex.protocol.states import Fault, JobState

STATES = [(s.value, s.value) for s in JobState]


class Blob(models.Model):
    """An uploaded file, kept once per owner by the digest of its plaintext and only sealed."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="blobs")
    digest = models.CharField(max_length=64)  # SHA-256 of the plaintext
    size = models.BigIntegerField()
    sealed_digest = models.CharField(max_length=64)
    sealed_size = models.BigIntegerField()
    wrapped_key = models.BinaryField()
    created_at = models.DateTimeField()
    wanted_at = models.DateTimeField(db_index=True)  # last time that somebody uploaded, looked for or used it

    class Meta:
        constraints = (models.UniqueConstraint(fields=["owner", "digest"], name="one_blob_per_owner_and_digest"),)

    def __str__(self) -> str:
        return self.digest

    @property
    def path(self) -> Path:
        """Where the sealed file is kept (`lib.store`). Each sealing has a place of its own, as it has a key of its own."""
        return Path(settings.LABAPEX.home) / "blobs" / str(self.owner_id) / self.digest[:2] / self.sealed_digest


class Job(models.Model):
    """One training job. Its row is also its place in the queue: `state` says which stage it waits for."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="jobs")
    name = models.CharField(max_length=80)
    spec = models.JSONField()  # protocol.spec.JobSpec
    bundle = models.JSONField()  # protocol.spec.Bundle
    parents = models.JSONField(default=list)  # protocol.contract.Parent of each model that it starts from
    requirements = models.JSONField(null=True)  # protocol.requirements.Lock, once they are locked
    state = models.CharField(max_length=12, choices=STATES, default=JobState.SUBMITTED.value)
    reason = models.TextField(blank=True)  # why it is in this state
    fault = models.CharField(max_length=10, blank=True, choices=[(f.value, f.value) for f in Fault])  # of an end state
    budget = models.BigIntegerField()  # micro-credits
    hold = models.ForeignKey("ledger.Transfer", on_delete=models.PROTECT, null=True, related_name="+")
    facts = models.JSONField(null=True)  # protocol.contract.ScriptFacts
    preflight = models.JSONField(null=True)  # protocol.replay.PreflightReport without its console
    iteration_seconds = models.FloatField(null=True)  # on the platform
    wrapped_content_key = models.BinaryField(null=True)
    sealed_index = models.BinaryField(null=True)  # section 0 of the executable
    package_ms = models.FloatField(null=True)
    handovers = models.JSONField(default=list)  # protocol.contract.Handover: from where the next lease goes on
    paid_epochs = models.IntegerField(default=0)  # by settlements until now: of a job that was stopped
    price_per_epoch = models.BigIntegerField(null=True)  # of the lease that runs or ran it
    claimed_by = models.CharField(max_length=80, blank=True)
    claimed_until = models.DateTimeField(null=True)
    rung_at = models.DateTimeField(null=True)  # when a task was last asked for
    attempts = models.IntegerField(default=0)  # leases that were lost
    stage_attempts = models.IntegerField(default=0)  # times that this state's task was begun
    version = models.IntegerField(default=0)  # bumped on every visible change
    idempotency_key = models.CharField(max_length=200, null=True)  # noqa: DJ001 - null is outside the unique constraint
    created_at = models.DateTimeField()
    turn_at = (
        models.DateTimeField()
    )  # its place in the queue: since when it waits, unless its client's jobs change places
    state_changed_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)  # first key release
    ended_at = models.DateTimeField(null=True, db_index=True)
    erase_after = models.DateTimeField(null=True, db_index=True)  # its owner asked; None: she did not, or it was done

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["owner", "idempotency_key"], name="one_job_per_idempotency_key"),
        )
        indexes = (
            models.Index(fields=["state", "turn_at"], name="job_state_turn"),
            models.Index(fields=["owner", "-created_at", "id"], name="job_owner_created"),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.state})"

    @property
    def job_spec(self) -> JobSpec:
        return JobSpec.model_validate(self.spec)

    @property
    def files(self) -> Bundle:
        return Bundle.model_validate(self.bundle)

    @property
    def origins(self) -> tuple[Parent, ...]:
        return tuple(Parent.model_validate(parent) for parent in self.parents)

    @property
    def lock(self) -> Lock:
        """The packages that its script runs with; none before the preflight."""
        return Lock() if self.requirements is None else Lock.model_validate(self.requirements)

    @property
    def resumable(self) -> bool:
        """Whether it was stopped behind epochs that are paid, and can go on from there."""
        return self.state == JobState.CANCELLED.value and bool(self.paid_epochs and self.handovers)


class Transition(models.Model):
    """The audit trail: append-only."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="transitions")
    before = models.CharField(max_length=12, blank=True)
    after = models.CharField(max_length=12)
    reason = models.TextField(blank=True)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.before} -> {self.after}"


class KeptWheel(models.Model):
    """A package that jobs ask for, kept for all of them by its digest."""

    sha256 = models.CharField(max_length=64, primary_key=True)
    wanted_at = models.DateTimeField(db_index=True)  # last time that a job was locked to it, or found to have it

    def __str__(self) -> str:
        return self.sha256


class Erasure(models.Model):
    """A part of a job's data that was deleted: append-only, so that whoever asks for it is told when and why."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="erasures")
    what = models.CharField(max_length=10, choices=[(s.value, s.value) for s in Stored])
    reason = models.TextField()
    at = models.DateTimeField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["job", "what"], name="one_erasure_per_part"),)

    def __str__(self) -> str:
        return f"{self.what} of {self.job_id}"
