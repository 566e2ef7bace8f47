"""The hosts that were enrolled, and the codes that enrol them."""

from __future__ import annotations

import uuid
from enum import StrEnum

from django.conf import settings
from django.db import models


class Worker(models.Model):
    """A host. Its private key was made there and never left it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="workers")
    name = models.CharField(max_length=80)
    public_key = models.BinaryField(max_length=32, unique=True)  # Ed25519
    price_per_hour = models.BigIntegerField()  # micro-credits
    created_at = models.DateTimeField()
    last_seen_at = models.DateTimeField(null=True)
    devices = models.JSONField(default=list)  # of protocol.devices.Device, as the agent reported them
    environment = models.JSONField(null=True)  # of the last run: protocol.contract.Environment
    torch_build = models.CharField(max_length=64, blank=True)  # likewise: KeyRequest.torch_build
    lacks_torch = models.BooleanField(default=False)  # as its agent said when it connected
    room = models.JSONField(null=True)  # protocol.limits.Limits: what one job may take of it, as its agent said last
    hours = models.JSONField(
        default=list
    )  # of protocol.hours.Hours, by UTC: when it takes work, as its agent said last
    deposit = models.OneToOneField(  # its hold; None: there is none
        "ledger.Transfer", on_delete=models.PROTECT, null=True, related_name="+"
    )
    banned = models.BooleanField(default=False)
    paused = models.CharField(max_length=500, blank=True)  # why it takes no work, as its agent said last

    speed = models.FloatField(null=True)  # GFLOP/s, as the last speed trial proved; None: not measured, or not passed
    speed_at = models.DateTimeField(null=True)
    next_trial_at = models.DateTimeField(null=True)  # None: at once

    def __str__(self) -> str:
        return self.name

    @property
    def deposited(self) -> int:
        """Micro-credits that its owner loses when it is found to have lied."""
        return 0 if self.deposit is None else self.deposit.amount


class Finding(StrEnum):
    """What one lease showed of its worker, or what the operator did."""

    VERIFIED = "verified"
    FALSE = "false"  # what it had done is not what it committed to, or logged
    UNOPENED = "unopened"  # it did not show, or not in time, what it had committed to
    REVERSED = "reversed"  # a dispute was ruled for it: what was said of this lease before does not count
    LOST = "lost"  # it fell silent, gave the lease back, or did not get on
    BANNED = "banned"
    UNBANNED = "unbanned"


class Mark(models.Model):
    """One finding about a worker. Append-only: the trail from which its reputation follows, and that says why it is banned."""

    worker = models.ForeignKey(Worker, on_delete=models.PROTECT, related_name="marks")
    finding = models.CharField(max_length=10, choices=[(f.value, f.value) for f in Finding])
    lease = models.UUIDField(null=True)  # the operator's marks are about none
    rule = models.CharField(max_length=40, blank=True)  # that decided
    reason = models.TextField(blank=True)
    deposit = models.ForeignKey(  # that was lost by it
        "ledger.Transfer", on_delete=models.PROTECT, null=True, related_name="+"
    )
    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.worker_id}: {self.finding}"


class SpeedTrial(models.Model):
    """One measurement of a worker's speed on the platform's clock, or why there was none."""

    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="trials")
    at = models.DateTimeField()
    size = models.IntegerField()
    rounds = models.IntegerField()
    seconds = models.FloatField(null=True)  # of the answer that was checked
    attempts = models.JSONField(default=list)  # seconds of every answer
    gflops = models.FloatField(null=True)
    problem = models.CharField(max_length=500, blank=True)

    def __str__(self) -> str:
        return f"{self.worker_id}: {self.problem or self.gflops}"


class EnrolmentCode(models.Model):
    """Valid once and for a short time; only its digest is kept."""

    digest = models.CharField(max_length=64, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="enrolment_codes")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"code of {self.owner}"
