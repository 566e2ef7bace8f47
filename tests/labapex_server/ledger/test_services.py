from __future__ import annotations

import csv
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from labapex.errors import NotEnoughCredit
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.ledger import statements
from labapex_server.ledger.models import HELD, Transfer
from labapex_server.lib.errors import Refused

pytestmark = pytest.mark.django_db


def test_a_hold_lowers_what_is_available_and_voiding_gives_it_back(researcher: User) -> None:
    account = ledger.account_of(researcher)
    before = ledger.balance(account)
    held = ledger.hold(account, amount=7, job=uuid.uuid4(), memo="")
    assert ledger.balance(account) == ledger.Balance(before.available - 7, 7)
    ledger.void(held)
    assert ledger.balance(account) == before
    assert ledger.outcome(held) == ledger.Outcome(held=7, paid=0, refunded=7, open=False)


def test_more_than_is_available_is_never_held(researcher: User) -> None:
    account = ledger.account_of(researcher)
    with pytest.raises(NotEnoughCredit, match="100 are available"):
        ledger.hold(account, amount=ledger.balance(account).available + 1, job=uuid.uuid4(), memo="")


def test_the_same_job_is_held_once(researcher: User) -> None:
    account, job = ledger.account_of(researcher), uuid.uuid4()
    assert ledger.hold(account, amount=7, job=job, memo="") == ledger.hold(account, amount=7, job=job, memo="")
    assert ledger.balance(account).held == 7


def test_settling_pays_the_host_and_gives_the_rest_back_to_the_unit(researcher: User, host: User) -> None:
    account, payee = ledger.account_of(researcher), ledger.account_of(host)
    before = ledger.balance(account).available
    held = ledger.hold(account, amount=10, job=uuid.uuid4(), memo="")
    rows = ledger.settle(held, payments=[(payee, 7, "3 epochs")])
    assert [row.amount for row in rows] == [7, 3]
    assert ledger.balance(account) == ledger.Balance(before - 7, 0)
    assert ledger.balance(payee).available == 7
    assert ledger.balance(ledger.escrow()) == ledger.Balance(0, 0)
    assert ledger.outcome(held) == ledger.Outcome(held=10, paid=7, refunded=3, open=False)


def test_settling_twice_pays_once(researcher: User, host: User) -> None:
    account, payee = ledger.account_of(researcher), ledger.account_of(host)
    held = ledger.hold(account, amount=10, job=uuid.uuid4(), memo="")
    first = ledger.settle(held, payments=[(payee, 7, "")])
    again = ledger.settle(held, payments=[(payee, 9, "")])
    assert {row.pk for row in first} == {row.pk for row in again}
    assert ledger.balance(payee).available == 7


def test_a_client_who_hosts_himself_still_has_a_correct_receipt(researcher: User) -> None:
    account = ledger.account_of(researcher)
    before = ledger.balance(account).available
    held = ledger.hold(account, amount=10, job=uuid.uuid4(), memo="")
    ledger.settle(held, payments=[(account, 7, "own work")])
    assert ledger.balance(account).available == before
    assert ledger.outcome(held) == ledger.Outcome(held=10, paid=7, refunded=3, open=False)


def test_payments_over_the_hold_are_an_error_and_change_nothing(researcher: User, host: User) -> None:
    held = ledger.hold(ledger.account_of(researcher), amount=10, job=uuid.uuid4(), memo="")
    with pytest.raises(ValueError, match="out of a hold"):
        ledger.settle(held, payments=[(ledger.account_of(host), 11, "")])
    assert Transfer.objects.get(pk=held.pk).status == HELD


def test_a_statement_has_every_row_of_its_month_and_counts_what_was_posted(researcher: User, host: User) -> None:
    account = ledger.account_of(researcher)
    paid, voided, open_ = (ledger.hold(account, amount=10, job=uuid.uuid4(), memo="=job()") for _ in range(3))
    ledger.settle(paid, payments=[(ledger.account_of(host), 7, "3 epochs")])
    ledger.void(voided)
    before = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    Transfer.objects.filter(credit=account, hold=None).update(created_at=before)
    month, january = statements.month(None), statements.month("2026-01")
    listed = [statements.entry(account, row) for row in statements.rows(account, month).order_by("created_at")]
    assert sorted((each.status, each.amount) for each in listed) == [
        ("held", -10), ("posted", -10), ("posted", 3), ("voided", -10),
    ]  # fmt: skip
    assert statements.balance_before(account, january.begin) == 0
    assert statements.balance_before(account, january.end) == statements.balance_before(account, month.begin) == 10**8
    assert statements.balance_before(account, month.end) == 10**8 - 7
    assert (ledger.spent(account), ledger.spent(ledger.account_of(host))) == (7, 0)
    assert statements.months(account) == [str(month), "2026-01"]
    rows = list(csv.DictReader("".join(statements.as_csv(account, month)).splitlines()))
    assert [row["credits"] for row in rows if row["entry"] == str(open_.pk)] == ["-0.00001"]
    assert {row["what"] for row in rows} == {"'=job()", ledger.REST}  # a spreadsheet computes nothing
    (told,) = csv.DictReader(statements.as_csv(account, january))
    assert (told["at"], told["credits"], told["status"]) == ("2026-01-31T23:59:59Z", "100", "posted")


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-13", "2026-00", "26-01", "2026-1", "0000-01", "9999-12", "2026-01-01", "x"]
)
def test_what_is_no_month_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Refused, match="2026-11"):
        statements.month(text)


@pytest.mark.parametrize(("amount", "text"), [(0, "0"), (2_500_000, "2.5"), (1, "0.000001"), (-3_000_000, "-3")])
def test_credits_are_written_as_people_write_them(amount: int, text: str) -> None:
    assert ledger.credits_text(amount) == text


class Book(RuleBasedStateMachine):
    """The book against a model of two numbers a person, whatever happens in whatever order and however often."""

    holds: Bundle[Any] = Bundle("holds")
    amounts = st.integers(min_value=1, max_value=1000)

    @initialize()
    def people(self) -> None:
        names = ("ann", "ben", "host")
        users = {name: User.objects.create(username=f"{name}-{uuid.uuid4()}") for name in names}
        self.accounts = {name: ledger.account_of(user) for name, user in users.items()}
        self.available = dict.fromkeys(names, 0)
        self.spent = dict.fromkeys(names, 0)
        self.open: dict[uuid.UUID, tuple[str, int]] = {}
        self.issued = self.fees = self.lost = 0
        self.guarantee_before = ledger.balance(ledger.guarantee()).available
        self.deposit: Any = None  # of the host
        self.fees_before = ledger.balance(ledger.fees()).available
        self.issued_before = -ledger.balance(ledger.issuer()).available

    @rule(who=st.sampled_from(["ann", "ben"]), amount=amounts)
    def top_up(self, who: str, amount: int) -> None:
        ledger.top_up(self.accounts[who], amount=amount, memo="")
        self.available[who] += amount
        self.issued += amount

    @rule(target=holds, who=st.sampled_from(["ann", "ben"]), amount=amounts)
    def hold(self, who: str, amount: int) -> Any:
        job = uuid.uuid4()
        if amount > self.available[who]:
            with pytest.raises(NotEnoughCredit):
                ledger.hold(self.accounts[who], amount=amount, job=job, memo="")
            return None
        held = ledger.hold(self.accounts[who], amount=amount, job=job, memo="")
        self.available[who] -= amount
        self.open[held.pk] = (who, amount)
        return held

    @rule(held=holds, share=st.integers(0, 80), fee_share=st.integers(0, 20))
    def settle(self, held: Any, share: int, fee_share: int) -> None:
        if held is None:
            return
        paid, fee = held.amount * share // 100, held.amount * fee_share // 100
        payments = [(self.accounts["host"], paid, ""), (ledger.fees(), fee, "")]
        ledger.settle(held, payments=[each for each in payments if each[1]])
        if held.pk in self.open:
            who, amount = self.open.pop(held.pk)
            self.available[who] += amount - paid - fee
            self.available["host"] += paid
            self.spent[who] += paid + fee
            self.fees += fee
            found = ledger.outcome(held)
            assert (found.held, found.paid, found.fee, found.refunded) == (amount, paid, fee, amount - paid - fee)

    @rule(held=holds)
    def void(self, held: Any) -> None:
        if held is not None:
            ledger.void(held)
            if held.pk in self.open:
                who, amount = self.open.pop(held.pk)
                self.available[who] += amount

    @rule(amount=amounts)
    def deposit_is_changed(self, amount: int) -> None:
        locked = self.deposit.amount if self.deposit else 0
        if amount > self.available["host"] + locked:
            with pytest.raises(NotEnoughCredit):
                ledger.deposit(self.accounts["host"], amount=amount, memo="", instead_of=self.deposit)
            return
        before, self.available["host"] = self.deposit, self.available["host"] + locked - amount
        self.deposit = ledger.deposit(self.accounts["host"], amount=amount, memo="", instead_of=before)
        self.open.pop(before.pk if before else None, None)
        self.open[self.deposit.pk] = ("host", amount)

    @rule(share=st.integers(0, 100))
    def deposit_is_lost(self, share: int) -> None:
        if self.deposit is not None:
            lost, self.deposit = self.deposit, None
            hers = lost.amount * share // 100
            parts = [(self.accounts["ann"], hers, ""), (ledger.guarantee(), lost.amount - hers, "")]
            ledger.settle(lost, payments=[part for part in parts if part[1]], job=uuid.uuid4())
            self.open.pop(lost.pk)
            self.available["ann"] += hers
            self.lost += lost.amount - hers

    @invariant()
    def every_balance_is_the_models(self) -> None:
        for who, account in getattr(self, "accounts", {}).items():
            held = sum(amount for name, amount in self.open.values() if name == who)
            assert ledger.balance(account) == ledger.Balance(self.available[who], held)

    @invariant()
    def no_credit_appears_or_vanishes(self) -> None:
        if hasattr(self, "accounts"):
            assert ledger.balance(ledger.escrow()).available == 0
            assert -ledger.balance(ledger.issuer()).available - self.issued_before == self.issued
            assert ledger.balance(ledger.fees()).available - self.fees_before == self.fees
            owned = sum(self.available.values()) + sum(amount for _, amount in self.open.values())
            assert ledger.balance(ledger.guarantee()).available - self.guarantee_before == self.lost
            assert owned + self.fees + self.lost == self.issued

    def teardown(self) -> None:
        """At the end of every story its statements are the book, and what was spent is the model's."""
        month = statements.month(None)
        for who, account in getattr(self, "accounts", {}).items():
            entries = [statements.entry(account, row) for row in statements.rows(account, month)]
            moved = sum(each.amount for each in entries if each.status == "posted")
            promised = -sum(each.amount for each in entries if each.status == "held")
            closing = statements.balance_before(account, month.end)
            balance = ledger.balance(account)
            assert (
                statements.balance_before(account, month.begin) + moved == closing == balance.available + balance.held
            )
            assert (promised, ledger.spent(account)) == (balance.held, self.spent[who])


class TestBook(TestCase, Book.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
