"""What can happen in the book: credit comes in, is held, is settled or given back. Each step may be repeated safely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet, Sum

from labapex.errors import NotEnoughCredit
from labapex.protocol.spec import CREDIT
from labapex_server.accounts.models import User
from labapex_server.ledger.models import ESCROW, FEES, GUARANTEE, HELD, ISSUER, POSTED, USER, VOIDED, Account, Transfer
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict

REST, STAKE_REST = "rest of the budget", "rest of the stake"
RESTS = (REST, STAKE_REST)
"""Memos of what comes back of a hold to whoever was to pay."""


@dataclass(frozen=True)
class Balance:
    """Micro-credits: what may be spent, and what is promised to jobs or lies in deposits."""

    available: int
    held: int


def account_of(user: User) -> Account:
    """The user's account, opened when it is first needed."""
    return Account.objects.get_or_create(user=user, defaults={"kind": USER})[0]


def escrow() -> Account:
    """Where settled holds pass through; empty whenever no settlement is half done, which no reader can see."""
    return Account.objects.get_or_create(kind=ESCROW, user=None)[0]


def issuer() -> Account:
    """Where credit comes from. Its balance is minus the credit in circulation."""
    return Account.objects.get_or_create(kind=ISSUER, user=None)[0]


def guarantee() -> Account:
    """What makes good where a verdict was wrong. Its balance is what the platform has lost by that, if it is below zero."""
    return Account.objects.get_or_create(kind=GUARANTEE, user=None)[0]


def fees() -> Account:
    """What the platform has earned."""
    return Account.objects.get_or_create(kind=FEES, user=None)[0]


def balance(account: Account) -> Balance:
    received = _sum(account.credits.filter(status=POSTED))
    spent = _sum(account.debits.filter(status=POSTED))
    held = _sum(account.debits.filter(status=HELD))
    return Balance(available=received - spent - held, held=held)


def spent(account: Account, *, job: UUID | None = None) -> int:
    """Micro-credits that verified work has cost so far: what was held and settled, less what came back of it. `job`: that of
    this one alone."""
    of_job = {"job__isnull": False} if job is None else {"job": job}  # what a deposit loses is no price
    settled = _sum(account.debits.filter(status=POSTED, credit__kind=ESCROW, **of_job))
    return settled - _sum(account.credits.filter(status=POSTED, hold__debit=account, memo__in=RESTS, **of_job))


def refundable(account: Account, *, job: UUID) -> int:
    """What a job has cost an account and the guarantee has not given back yet; below 0 where it gave more."""
    return spent(account, job=job) - _sum(account.credits.filter(status=POSTED, debit__kind=GUARANTEE, job=job))


@transaction.atomic
def top_up(account: Account, *, amount: int, memo: str, reference: str | None = None) -> Transfer:
    """Issue credit to an account. Raises `IntegrityError` for a reference that credit was issued for already."""
    return _transfer(debit=issuer(), credit=account, amount=amount, status=POSTED, memo=memo, reference=reference)


@transaction.atomic
def make_good(account: Account, *, amount: int, job: UUID | None, memo: str) -> Transfer:
    """Pay out of the guarantee, whatever it holds; `job` is None for what was no pay of one."""
    return _transfer(debit=guarantee(), credit=account, amount=amount, status=POSTED, memo=memo, job=job)


@transaction.atomic
def refund(account: Account, *, amount: int, job: UUID, memo: str) -> Transfer:
    """Give back, out of the guarantee, what a job has cost an account. Raises `Conflict` for more than that."""
    Account.objects.select_for_update().get(pk=account.pk)
    cost, left = spent(account, job=job), refundable(account, job=job)
    if amount > left:
        raise Conflict(
            f"the job has cost {credits_text(cost)} credits, of which {credits_text(cost - left)} are given back:"
            f" {credits_text(max(0, left))} can be"
        )
    return make_good(account, amount=amount, job=job, memo=memo[:200])


@transaction.atomic
def reclaim(account: Account, *, most: int, job: UUID, memo: str) -> int:
    """Take what is available of an account, `most` of it, for the guarantee. Returns how much that was, perhaps nothing."""
    Account.objects.select_for_update().get(pk=account.pk)
    amount = min(most, balance(account).available)
    if amount > 0:
        _transfer(debit=account, credit=guarantee(), amount=amount, status=POSTED, memo=memo, job=job)
    return max(0, amount)


@transaction.atomic
def hold(account: Account, *, amount: int, job: UUID, memo: str) -> Transfer:
    """Promise `amount` to a job; the same job again gives its open hold. Raises `NotEnoughCredit`."""
    Account.objects.select_for_update().get(pk=account.pk)  # holds of one account take turns: none is promised twice
    before = Transfer.objects.filter(job=job, status=HELD).first()
    if before is not None:
        return before
    available = balance(account).available
    if available < amount:
        raise NotEnoughCredit(
            f"the job's budget is {credits_text(amount)} credits and {credits_text(available)} are available;"
            " lower the budget or top up the account"
        )
    return _transfer(debit=account, credit=escrow(), amount=amount, status=HELD, memo=memo, job=job)


@transaction.atomic
def deposit(account: Account, *, amount: int, memo: str, instead_of: Transfer | None = None) -> Transfer:
    """Hold `amount` for no job, in place of an earlier deposit, whose credit counts as available. Raises `NotEnoughCredit`, and
    leaves the earlier one as it was."""
    Account.objects.select_for_update().get(pk=account.pk)
    if instead_of is not None:
        void(instead_of)
    available = balance(account).available
    if available < amount:
        raise NotEnoughCredit(
            f"the deposit is {credits_text(amount)} credits and {credits_text(available)} are available;"
            " lower it or top up the account"
        )
    return _transfer(debit=account, credit=escrow(), amount=amount, status=HELD, memo=memo)


@transaction.atomic
def settle(
    held: Transfer, *, payments: Sequence[tuple[Account, int, str]], rest: str = REST, job: UUID | None = None
) -> list[Transfer]:
    """Close a hold: pay (account, micro-credits, memo) out of it and give the rest back. `job`: because of which, where the hold
    is for none.

    Once and for all: a hold that is closed already stays as it is, and its settlement is returned.
    Raises `ValueError` where the payments exceed the hold.
    """
    current = Transfer.objects.select_for_update().get(pk=held.pk)
    if current.status != HELD:
        return list(current.settlements.all())
    total = sum(amount for _, amount, _ in payments)
    if total > current.amount or any(amount < 0 for _, amount, _ in payments):
        raise ValueError(f"payments of {total} out of a hold of {current.amount}")
    if not total:
        _close(current, VOIDED)
        return []
    _close(current, POSTED)
    rows = [*payments, (current.debit, current.amount - total, rest)]
    return [
        _transfer(
            debit=current.credit,
            credit=account,
            amount=amount,
            status=POSTED,
            memo=memo,
            job=current.job or job,
            hold=current,
        )
        for account, amount, memo in rows
        if amount
    ]


def void(held: Transfer) -> None:
    """Give all of a hold back; nothing happens where it is closed already."""
    settle(held, payments=[])


@dataclass(frozen=True)
class Outcome:
    """What became of the holds of a job, micro-credits; `held == paid + fee + refunded` once all are closed."""

    held: int
    paid: int  # to hosts
    refunded: int
    open: bool
    fee: int = 0  # the platform's


def outcome(held: Transfer | None) -> Outcome:
    """Where the money of a hold is, and of earlier ones of the same job: one that was resumed has several. Without a hold
    nothing was ever promised."""
    if held is None:
        return Outcome(held=0, paid=0, refunded=0, open=False)
    before = Transfer.objects.filter(job=held.job, debit=held.debit_id, hold=None, created_at__lt=held.created_at)
    holds = before | Transfer.objects.filter(pk=held.pk)  # what is staked on its verdict comes later
    amounts = {HELD: 0, POSTED: 0, VOIDED: 0}
    for status, amount in holds.values_list("status", "amount"):
        amounts[status] += amount
    rest = _sum(Transfer.objects.filter(hold__in=holds, credit=held.debit_id, memo__in=RESTS)) if amounts[POSTED] else 0
    fee = _sum(Transfer.objects.filter(hold__in=holds, credit__kind=FEES)) if amounts[POSTED] else 0
    return Outcome(
        held=sum(amounts.values()),
        paid=amounts[POSTED] - rest - fee,
        fee=fee,
        refunded=rest + amounts[VOIDED],
        open=bool(amounts[HELD]),
    )


def credits_text(amount: int) -> str:
    """Micro-credits as people write credits: 2500000 is "2.5"."""
    sign, amount = ("-" if amount < 0 else ""), abs(amount)
    whole, fraction = divmod(amount, CREDIT)
    return f"{sign}{whole}" + (f".{fraction:06d}".rstrip("0") if fraction else "")


def _close(current: Transfer, status: str) -> None:
    changed = Transfer.objects.filter(pk=current.pk, status=HELD).update(status=status)
    if changed != 1:
        raise RuntimeError(f"hold {current.pk} was closed by someone else while it was locked")


def _transfer(
    *,
    debit: Account,
    credit: Account,
    amount: int,
    status: str,
    memo: str,
    job: UUID | None = None,
    hold: Transfer | None = None,
    reference: str | None = None,
) -> Transfer:
    if amount <= 0:
        raise ValueError("an amount must be positive")
    return Transfer.objects.create(
        debit=debit,
        credit=credit,
        amount=amount,
        status=status,
        memo=memo,
        job=job,
        hold=hold,
        reference=reference,
        created_at=clock.now(),
    )


def _sum(transfers: QuerySet[Transfer]) -> int:
    total = transfers.aggregate(total=Sum("amount"))["total"]
    return int(total or 0)
