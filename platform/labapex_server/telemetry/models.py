"""What a run said: the log of a lease, frame by frame as it came, and the commitments that were in it."""

from __future__ import annotations

from django.db import models

from labapex.protocol import records


class Log(models.Model):
    """What is held of a lease's log: frames 0 .. seq-1 with `next` loss records."""

    lease = models.OneToOneField("marketplace.Lease", on_delete=models.CASCADE, primary_key=True, related_name="log")
    seq = models.BigIntegerField(default=0)
    next = models.BigIntegerField(default=0)
    head = models.BinaryField(max_length=32)
    series = models.JSONField(default=list)  # names of the script's own
    finished = models.BooleanField(default=False)
    fin_signature = models.BinaryField(max_length=64, null=True)

    def __str__(self) -> str:
        return f"log of {self.lease_id}: {self.seq} frames"


class Frame(models.Model):
    """One frame: the ciphertext as it was received (the evidence) and its opened columns (for reading)."""

    log = models.ForeignKey(Log, on_delete=models.CASCADE, related_name="frames")
    seq = models.BigIntegerField()
    first = models.BigIntegerField()
    n = models.IntegerField()
    prev = models.BinaryField(max_length=32)
    hash = models.BinaryField(max_length=32)
    payload = models.BinaryField()
    losses = models.BinaryField()  # little-endian float64
    times = models.BinaryField()  # little-endian float64, Unix time
    extras = models.JSONField(default=dict)  # {"samples": [..], "console": [..], "series": [..], "failure": str}
    received_at = models.FloatField()  # Unix time on the platform

    class Meta:
        constraints = (models.UniqueConstraint(fields=["log", "seq"], name="one_frame_per_seq"),)
        indexes = (models.Index(fields=["log", "first"], name="frame_by_iteration"),)  # which hold this stretch?

    def __str__(self) -> str:
        return f"frame {self.seq} of {self.log_id}"


class Summary(models.Model):
    """The losses of one span of iterations in few numbers, made once from its frames: `telemetry.summaries`."""

    log = models.ForeignKey(Log, on_delete=models.CASCADE, related_name="summaries")
    first = models.BigIntegerField()
    bins = models.BinaryField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["log", "first"], name="one_summary_per_span"),)

    def __str__(self) -> str:
        return f"iterations from {self.first} of {self.log_id}"


class Observed(models.Model):
    """Some readings of the GPU by a lease's agent, from outside of the sandbox: protocol.devices.Observation."""

    lease = models.ForeignKey("marketplace.Lease", on_delete=models.CASCADE, related_name="observed")
    readings = models.JSONField()
    received_at = models.FloatField()  # Unix time on the platform

    def __str__(self) -> str:
        return f"{len(self.readings)} readings of {self.lease_id}"


class Leaf(models.Model):
    """One commitment: protocol.records.Leaf, with the platform's time of receipt."""

    log = models.ForeignKey(Log, on_delete=models.CASCADE, related_name="leaves")
    index = models.BigIntegerField()
    step = models.BigIntegerField()
    state = models.CharField(max_length=64)
    size = models.BigIntegerField()
    chunks = models.BigIntegerField()
    settings = models.CharField(max_length=64)
    update_norm = models.FloatField(null=True)
    batches = models.CharField(max_length=64)
    losses = models.CharField(max_length=64)
    prev = models.CharField(max_length=64)
    digest = models.CharField(max_length=64)
    received_at = models.FloatField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["log", "index"], name="one_leaf_per_index"),)
        indexes = (models.Index(fields=["state"], name="leaf_by_state"),)  # whose state is it?

    def __str__(self) -> str:
        return f"leaf {self.index} of {self.log_id}"

    @property
    def record(self) -> records.Leaf:
        """As it was on the wire."""
        fields = ("index", "step", "state", "size", "chunks", "settings", "update_norm", "batches", "losses", "prev")
        return records.Leaf.model_validate({name: getattr(self, name) for name in fields})
