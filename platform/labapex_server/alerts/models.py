"""What is wrong with a run, whom to tell, and what is still to be told."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from labapex.protocol.api import AlertKind, AlertView


class Watch(models.Model):
    """How far a job's log was looked at, and what it came to."""

    job = models.OneToOneField("jobs.Job", on_delete=models.CASCADE, primary_key=True, related_name="watch")
    lease = models.UUIDField(null=True)  # whose log
    seq = models.BigIntegerField(default=0)  # its next frame
    arrived_at = models.FloatField(null=True)  # Unix time of the last iteration's arrival
    trend = models.JSONField(default=dict)  # alerts.trend.Trend
    looked_at = models.DateTimeField()

    class Meta:
        indexes = (models.Index(fields=["looked_at"], name="watch_by_age"),)

    def __str__(self) -> str:
        return f"watch of {self.job_id}"


class Alert(models.Model):
    """A condition that a job is or was in. There is one of each kind."""

    job = models.ForeignKey("jobs.Job", on_delete=models.CASCADE, related_name="alerts")
    kind = models.CharField(max_length=20)
    text = models.TextField()
    raised_at = models.DateTimeField()
    stands = models.BooleanField(default=True)
    recovered_at = models.DateTimeField(null=True)  # for the first time

    class Meta:
        constraints = (models.UniqueConstraint(fields=["job", "kind"], name="one_alert_per_condition"),)

    def __str__(self) -> str:
        return f"{self.kind} of {self.job_id}"

    @property
    def view(self) -> AlertView:
        recovered = None if self.stands or self.recovered_at is None else self.recovered_at.timestamp()
        return AlertView(
            kind=AlertKind(self.kind), text=self.text, raised_at=self.raised_at.timestamp(), recovered_at=recovered
        )


class Channels(models.Model):
    """How a person wants to be told."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="+")
    mail = models.BooleanField(default=False)  # to the account's address, or its members'
    webhook = models.CharField(max_length=2000, blank=True)
    wrapped_secret = models.BinaryField(null=True)  # with which its calls are signed
    budget_share = models.IntegerField(default=80)  # percent

    def __str__(self) -> str:
        return f"channels of {self.user_id}"


class Delivery(models.Model):
    """One message on its way. The row is the queue."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    channel = models.CharField(max_length=10)  # mail or webhook
    subject = models.CharField(max_length=200)
    body = models.TextField()  # the same at each attempt
    created_at = models.DateTimeField()
    due_at = models.DateTimeField(null=True)  # null: nothing more is tried
    attempts = models.IntegerField(default=0)
    done_at = models.DateTimeField(null=True)
    problem = models.TextField(blank=True)  # of the last attempt

    class Meta:
        indexes = (models.Index(fields=["due_at"], name="delivery_by_due"),)

    def __str__(self) -> str:
        return f"{self.subject} by {self.channel}"
