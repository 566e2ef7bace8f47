"""Who runs what, at which price. The lease's id is the fencing token of everything that a worker sends."""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from labapex.protocol.contract import Contract
from labapex.protocol.states import LeaseState

LIVE = (LeaseState.GRANTED.value, LeaseState.RUNNING.value, LeaseState.FINISHED.value)


class Lease(models.Model):
    """One job promised to one worker."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    job = models.ForeignKey("jobs.Job", on_delete=models.PROTECT, related_name="leases")
    worker = models.ForeignKey("workers.Worker", on_delete=models.PROTECT, related_name="leases")
    state = models.CharField(
        max_length=10, choices=[(s.value, s.value) for s in LeaseState], default=LeaseState.GRANTED.value
    )
    seed = models.CharField(max_length=64)
    price_per_epoch = models.BigIntegerField()  # micro-credits, to its worker's owner
    fee_per_epoch = models.BigIntegerField(default=0)  # and to the platform
    contract = models.JSONField()  # protocol.contract.Contract
    manifest = models.JSONField()  # protocol.manifest.Manifest
    manifest_signature = models.BinaryField(max_length=64)
    token_digest = models.CharField(max_length=64)  # SHA-256 of the bearer token
    granted_at = models.DateTimeField()
    heartbeat_at = models.DateTimeField()
    expires_at = models.DateTimeField()  # unless the worker shows that it lives
    key_released_at = models.DateTimeField(null=True)
    hpke_key = models.BinaryField(max_length=32, null=True)  # of the executable that the keys were given to
    sealed_keys = models.BinaryField(null=True)  # what it was given: sent again if the reply was lost
    wrapped_run_key = models.BinaryField(null=True)
    signing_key = models.BinaryField(max_length=32, null=True)  # Ed25519, of the executable
    environment = models.JSONField(null=True)  # protocol.contract.Environment, as the executable reported it
    finished_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    reason = models.TextField(blank=True)
    excused = models.BooleanField(default=False)  # the platform was restored while it lived: what it lacks is no lie

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["job"], condition=Q(state__in=LIVE), name="one_live_lease_per_job"),
        )
        indexes = (models.Index(fields=["state", "expires_at"], name="lease_state_expires"),)

    def __str__(self) -> str:
        return f"{self.job_id} on {self.worker_id} ({self.state})"

    @property
    def terms(self) -> Contract:
        return Contract.model_validate(self.contract)
