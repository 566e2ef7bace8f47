"""What was asked of a worker after it had committed itself, what it opened, and the verdict."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.db import models


class Challenge(models.Model):
    """Drawn once, after the last leaf of the lease was fixed."""

    lease = models.OneToOneField("marketplace.Lease", on_delete=models.PROTECT, related_name="challenge")
    nonce = models.CharField(max_length=64)  # what the draw was seeded with: published, so that anyone may repeat it
    indices = models.JSONField()  # leaves whose states are to be uploaded
    segments = models.JSONField()  # leaves that the replayed segments begin with
    compare = models.JSONField(default=list)  # segments whose end state is at hand too
    evaluations = models.JSONField()  # protocol.replay.EpochSample
    rules = models.JSONField(default=list)  # results that need no replay: pages show them until the verdict has all
    issued_at = models.DateTimeField()
    deadline = models.DateTimeField()

    def __str__(self) -> str:
        return f"challenge of {self.lease_id}"


class OpenedState(models.Model):
    """A state that arrived complete and of the committed size."""

    lease = models.ForeignKey("marketplace.Lease", on_delete=models.PROTECT, related_name="opened")
    index = models.BigIntegerField()
    size = models.BigIntegerField()
    received_at = models.DateTimeField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["lease", "index"], name="one_opened_state_per_index"),)

    def __str__(self) -> str:
        return f"state {self.index} of {self.lease_id}"

    @property
    def path(self) -> Path:
        return Path(settings.LABAPEX.home) / "leases" / str(self.lease_id) / "states" / f"{self.index}.safetensors"


class VerdictRecord(models.Model):
    """A signed verdict: protocol.verdict.SignedVerdict."""

    lease = models.OneToOneField("marketplace.Lease", on_delete=models.PROTECT, related_name="verdict")
    job = models.ForeignKey("jobs.Job", on_delete=models.PROTECT, related_name="verdicts")
    document = models.JSONField()
    key_id = models.CharField(max_length=64)
    signature = models.BinaryField(max_length=64)
    issued_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"verdict on {self.job_id}"
