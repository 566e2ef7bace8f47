"""The hosts that were enrolled, and the codes that enrol them."""

from __future__ import annotations

import uuid

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
    devices = models.JSONField(default=list)  # names, as the agent reported them
    environment = models.JSONField(null=True)  # of the last run: protocol.contract.Environment
    banned = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.name


class EnrolmentCode(models.Model):
    """Valid once and for a short time; only its digest is kept."""

    digest = models.CharField(max_length=64, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="enrolment_codes")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"code of {self.owner}"
