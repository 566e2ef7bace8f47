"""What the pipeline did, counted where all of its processes can."""

from __future__ import annotations

from django.db import models


class Tally(models.Model):
    """How often a task ended in some way, how long that took, and when it was so last."""

    task = models.CharField(max_length=20)
    outcome = models.CharField(max_length=10)  # pipeline.tally.Outcome
    count = models.BigIntegerField(default=0)
    seconds = models.FloatField(default=0)
    last_at = models.DateTimeField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["task", "outcome"], name="one_tally_per_outcome"),)

    def __str__(self) -> str:
        return f"{self.count} {self.task} {self.outcome}"
