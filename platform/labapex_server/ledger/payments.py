"""Credit for what was paid outside of the book. A provider says what that was; each of its references counts once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from django.db import IntegrityError, transaction

from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Transfer


@dataclass(frozen=True)
class Payment:
    """What was paid in."""

    user: User
    amount: int  # micro-credits
    memo: str


class Provider(Protocol):
    """Where money comes from. `name` is part of what its references are kept under, at most 40 characters."""

    @property
    def name(self) -> str: ...

    def confirmed(self, reference: str) -> Payment:
        """What was paid in under a reference of the provider's. Raises `LabApexError` where nothing was, or not yet."""
        ...


@dataclass(frozen=True)
class Operator:
    """The operator's own word: an invoice that was paid, or a gift."""

    payment: Payment
    name: str = "operator"

    def confirmed(self, reference: str) -> Payment:
        return self.payment


def credit(provider: Provider, reference: str) -> tuple[Transfer, bool]:
    """Issue what was paid in under a reference, once; whether it was now. The same reference again issues nothing."""
    known = f"{provider.name}:{reference}"
    if (before := Transfer.objects.filter(reference=known).first()) is not None:
        return before, False
    paid = provider.confirmed(reference)
    try:
        with transaction.atomic():
            account = ledger.account_of(paid.user)
            return ledger.top_up(account, amount=paid.amount, memo=paid.memo, reference=known), True
    except IntegrityError:  # somebody was first
        return Transfer.objects.get(reference=known), False
