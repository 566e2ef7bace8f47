"""What was asked of a worker after it had committed itself, what it opened, and the verdict."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings
from django.db import models
from django.db.models import Q


class Challenge(models.Model):
    """What a worker is asked to show, in rounds, after the last leaf of the lease was fixed.

    Round 0: one chunk of the parameters of every kept state. Round 1: the states that were drawn once the chunk had come.
    Later ones: states that doubts asked for. Where there is no chunk to look at, round 0 waits for nobody."""

    lease = models.OneToOneField("marketplace.Lease", on_delete=models.PROTECT, related_name="challenge")
    round = models.IntegerField(default=0)
    waiting = models.BooleanField(default=True)  # for the worker; else the next step is ours
    chunk_nonce = models.CharField(
        max_length=64, default=""
    )  # what the draws are seeded with: published with the proof,
    nonce = models.CharField(max_length=64, default="")  # so that anyone may repeat them; empty until it is drawn
    audit_segments = models.IntegerField(default=0)  # drawn at random, besides the others; 0 until they are
    chunk = models.BigIntegerField(null=True)  # number of the chunk of the parameters; None: there is none to look at
    pev_percent = models.FloatField(default=10)
    ends = models.BooleanField(default=False)  # of each segment the end state is opened too
    indices = models.JSONField(default=list)  # leaves whose states were drawn
    segments = models.JSONField(default=list)  # leaves that the replayed segments begin with
    evaluations = models.JSONField(default=list)  # protocol.replay.EpochSample
    further = models.JSONField(default=list)  # leaves whose states doubts asked for
    further_segments = models.JSONField(default=list)
    wanted = models.JSONField(default=list)  # leaves of which this round wants something
    rules = models.JSONField(default=list)  # results that need no replay: pages show them until the verdict has all
    issued_at = models.DateTimeField()
    deadline = models.DateTimeField()

    def __str__(self) -> str:
        return f"challenge of {self.lease_id}"

    @property
    def all_indices(self) -> list[int]:
        """Leaves whose states were asked for, in all rounds."""
        return sorted({*self.indices, *self.further})

    @property
    def all_segments(self) -> list[int]:
        return sorted({*self.segments, *self.further_segments})

    @property
    def chunks_path(self) -> Path:
        """The worker's answer of round 0, once it came."""
        return Path(settings.LABAPEX.home) / "leases" / str(self.lease_id) / "chunks.bin"


class Replay(models.Model):
    """What the rounds until now found by replaying: protocol.replay.ReplayReport. Later rounds add to it."""

    lease = models.OneToOneField("marketplace.Lease", on_delete=models.PROTECT, related_name="replay")
    report = models.JSONField()
    weights = models.CharField(max_length=64, default="")  # SHA-256 of the result that the final state gave, if any

    def __str__(self) -> str:
        return f"replay of {self.lease_id}"


class OpenedState(models.Model):
    """A state that arrived complete and of the committed size."""

    lease = models.ForeignKey("marketplace.Lease", on_delete=models.PROTECT, related_name="opened")
    index = models.BigIntegerField()
    size = models.BigIntegerField()
    received_at = models.DateTimeField()
    kept = models.BooleanField(default=False, db_index=True)  # for good: its job has ended, and its proof is made of it

    class Meta:
        constraints = (models.UniqueConstraint(fields=["lease", "index"], name="one_opened_state_per_index"),)

    def __str__(self) -> str:
        return f"state {self.index} of {self.lease_id}"

    @property
    def path(self) -> Path:
        return Path(settings.LABAPEX.home) / "leases" / str(self.lease_id) / "states" / f"{self.index}.safetensors"


class VerdictRecord(models.Model):
    """A signed verdict: protocol.verdict.SignedVerdict. One that a ruling took the place of stays, and stands no more."""

    lease = models.ForeignKey("marketplace.Lease", on_delete=models.PROTECT, related_name="verdicts")
    job = models.ForeignKey("jobs.Job", on_delete=models.PROTECT, related_name="verdicts")
    document = models.JSONField()
    key_id = models.CharField(max_length=64)
    signature = models.BinaryField(max_length=64)
    issued_at = models.DateTimeField()
    stands = models.BooleanField(default=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["lease"], condition=Q(stands=True), name="one_standing_verdict_per_lease"),
        )

    def __str__(self) -> str:
        return f"verdict on {self.job_id}"
