"""The book. One row moves one amount from one account to another, so that it balances by construction.

A hold is a row from the client to escrow with status `held`: it lowers what is available and has moved nothing yet.
Settling makes the hold `posted` and adds the rows that empty escrow again, to the worker and back to the client, each
pointing to its hold. Voiding makes the hold `voided`, as if it had never been. No row is ever deleted or changed
otherwise.
"""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q

USER, ISSUER, ESCROW, GUARANTEE, FEES = "user", "issuer", "escrow", "guarantee", "fees"
HELD, POSTED, VOIDED = "held", "posted", "voided"


class Account(models.Model):
    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="account")
    kind = models.CharField(max_length=10, choices=[(k, k) for k in (USER, ISSUER, ESCROW, GUARANTEE, FEES)])

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["kind"], condition=Q(user__isnull=True), name="one_account_of_each_house_kind"
            ),
            models.CheckConstraint(
                condition=Q(kind=USER, user__isnull=False) | (~Q(kind=USER) & Q(user__isnull=True)),
                name="user_accounts_have_users",
            ),
        )

    def __str__(self) -> str:
        return str(self.user) if self.user_id else self.kind


class Transfer(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    debit = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="debits")
    credit = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="credits")
    amount = models.BigIntegerField()  # micro-credits
    status = models.CharField(max_length=10, choices=[(s, s) for s in (HELD, POSTED, VOIDED)])
    hold = models.ForeignKey("self", on_delete=models.PROTECT, null=True, related_name="settlements")
    job = models.UUIDField(null=True, db_index=True)
    memo = models.CharField(max_length=200, blank=True)
    reference = models.CharField(max_length=200, null=True, unique=True)  # noqa: DJ001 - of what was paid in: once
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = (
            models.CheckConstraint(condition=Q(amount__gt=0), name="amount_is_positive"),
            models.UniqueConstraint(fields=["job"], condition=Q(status=HELD), name="one_open_hold_per_job"),
        )

    def __str__(self) -> str:
        return f"{self.amount} {self.debit} -> {self.credit} ({self.status})"
