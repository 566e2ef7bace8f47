"""Whether the book is as it must be: figures that are 0 at every moment, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Q, Sum

from labapex_server.ledger.models import ESCROW, HELD, POSTED, USER, Account, Transfer


@dataclass(frozen=True)
class Audit:
    """Micro-credits; the first two must be 0."""

    escrow: int  # what stays in escrow though its hold is settled
    overdrawn: int  # by which users' accounts have less than nothing to spend
    circulating: int  # what users have, held or not
    held: int


def audit() -> Audit:
    """Reads every transfer once."""
    moved = Transfer.objects.filter(status=POSTED)
    into = dict(moved.order_by().values_list("credit").annotate(Sum("amount")))
    out_of = dict(moved.order_by().values_list("debit").annotate(Sum("amount")))
    held = dict(Transfer.objects.filter(status=HELD).order_by().values_list("debit").annotate(Sum("amount")))
    escrow = circulating = overdrawn = 0
    for account, kind in Account.objects.filter(Q(kind=USER) | Q(kind=ESCROW)).values_list("pk", "kind"):
        balance = into.get(account, 0) - out_of.get(account, 0)
        if kind == ESCROW:
            escrow += balance
        else:
            circulating += balance
            overdrawn += max(0, held.get(account, 0) - balance)
    return Audit(escrow=escrow, overdrawn=overdrawn, circulating=circulating, held=sum(held.values()))
