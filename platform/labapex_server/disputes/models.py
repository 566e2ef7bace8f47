"""Verdicts that a party contests, and how far each re-execution has come."""

from __future__ import annotations

import uuid
from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models import Q

from labapex.protocol.ruling import Outcome, Side

OPEN, RULED = "open", "ruled"


class Dispute(models.Model):
    """One contested verdict. Its row is also its place in the queue; the ruling is final."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    job = models.ForeignKey("jobs.Job", on_delete=models.PROTECT, related_name="disputes")
    lease = models.ForeignKey("marketplace.Lease", on_delete=models.PROTECT, related_name="disputes")  # that was judged
    verdict = models.ForeignKey("verification.VerdictRecord", on_delete=models.PROTECT, related_name="disputes")
    opener = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="disputes")
    side = models.CharField(max_length=10, choices=[(s.value, s.value) for s in Side])
    reason = models.TextField()  # the opener's own words
    stake = models.ForeignKey("ledger.Transfer", on_delete=models.PROTECT, related_name="+")
    state = models.CharField(max_length=10, choices=[(s, s) for s in (OPEN, RULED)], default=OPEN)
    outcome = models.CharField(max_length=10, blank=True, choices=[(o.value, o.value) for o in Outcome])
    document = models.JSONField(null=True)  # protocol.ruling.Ruling
    key_id = models.CharField(max_length=64, blank=True)
    signature = models.BinaryField(max_length=64, null=True)
    segments = models.BigIntegerField()  # of the whole run
    executed = models.BigIntegerField(default=0)  # segments that were run again so far
    created_at = models.DateTimeField()
    ruled_at = models.DateTimeField(null=True)
    claimed_by = models.CharField(max_length=80, blank=True)
    claimed_until = models.DateTimeField(null=True)
    rung_at = models.DateTimeField(null=True)  # when the task was last asked for
    attempts = models.IntegerField(default=0)  # since the last turn that was done

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["job"], condition=~Q(outcome=Outcome.UNJUDGED.value), name="one_ruling_per_job"
            ),
        )
        indexes = (models.Index(fields=["state", "created_at"], name="dispute_state_created"),)

    def __str__(self) -> str:
        return f"dispute over {self.job_id} ({self.outcome or self.state})"

    @property
    def folder(self) -> Path:
        """States that the re-execution came to, each the committed one: from there it goes on."""
        return Path(settings.LABAPEX.home) / "disputes" / str(self.pk)

    def place(self, leaf: int) -> Path:
        """Where such a state is kept."""
        return self.folder / f"{leaf}.safetensors"


class Turn(models.Model):
    """What one run of the sandboxed child found: segments `start` .. `stop` - 1, named by the leaves they begin with."""

    dispute = models.ForeignKey(Dispute, on_delete=models.CASCADE, related_name="turns")
    start = models.BigIntegerField()
    stop = models.BigIntegerField()
    confirms = models.BooleanField(default=False)  # a second look at a segment that came out false
    kept = models.BigIntegerField(null=True)  # the leaf whose state it came to and left in the dispute's folder
    report = models.JSONField()  # protocol.replay.ReplayReport
    at = models.DateTimeField()

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["dispute", "start", "stop", "confirms"], name="one_turn_per_stretch"),
        )

    def __str__(self) -> str:
        return f"segments {self.start} to {self.stop} of {self.dispute_id}"
