"""The public log, its tree, and where each certificate stands in it. `guard` keeps log and tree append-only."""

from __future__ import annotations

from django.db import models


class Tail(models.Model):
    """One row. Whoever appends holds it, so that entries are numbered one after the other and without a gap."""

    size = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.size} entries"


class LogEntry(models.Model):
    """One entry, for ever."""

    index = models.BigIntegerField(primary_key=True)  # from 0, without a gap
    leaf = models.BinaryField()  # what is public: the canonical JSON of labapex.certificate.Envelope
    leaf_hash = models.BinaryField(max_length=32)  # SHA-256(0x00 | leaf)
    created_at = models.DateTimeField()

    class Meta:
        db_table = "transparency_logentry"

    def __str__(self) -> str:
        return f"entry {self.index}"


class LogNode(models.Model):
    """The root over a full run of 2^level entries, level >= 1: written when the last of them came (see `tree`)."""

    level = models.SmallIntegerField()
    position = models.BigIntegerField()
    hash = models.BinaryField(max_length=32)

    class Meta:
        db_table = "transparency_lognode"
        constraints = (models.UniqueConstraint(fields=["level", "position"], name="one_hash_per_node"),)

    def __str__(self) -> str:
        return f"node {self.position} of level {self.level}"


class CertificateRecord(models.Model):
    """Where the certificate of a verified job stands in the log, and what it is looked up by. The log has its words."""

    entry = models.OneToOneField(LogEntry, on_delete=models.PROTECT, related_name="certificate")
    job = models.OneToOneField("jobs.Job", on_delete=models.PROTECT, related_name="certificate")
    digest = models.CharField(max_length=64, unique=True)  # of the signed statement
    model = models.CharField(max_length=64, db_index=True)  # SHA-256 of the weights' file
    manifest = models.CharField(max_length=64, db_index=True)  # of the model as a whole
    parents = models.JSONField(default=list)  # digests of other certificates

    def __str__(self) -> str:
        return f"certificate of {self.job_id}"


class RevocationRecord(models.Model):
    """Where the log takes a certificate back."""

    entry = models.OneToOneField(LogEntry, on_delete=models.PROTECT, related_name="revocation")
    certificate = models.OneToOneField(CertificateRecord, on_delete=models.PROTECT, related_name="revocation")

    def __str__(self) -> str:
        return f"revocation of {self.certificate}"
