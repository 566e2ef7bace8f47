from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.ledger.payments import Payment, credit
from labapex_server.lib.errors import Refused

pytestmark = pytest.mark.django_db


def test_the_operator_issues_credit_by_command(host: User) -> None:
    out = StringIO()
    call_command("topup", "host", "2.5", stdout=out)
    assert out.getvalue() == "host has 2.5 credits available\n"
    assert ledger.balance(ledger.account_of(host)).available == 2_500_000


@pytest.mark.parametrize(("user", "credits"), [("nobody", "1"), ("host", "-1"), ("host", "0"), ("host", "much")])
def test_a_wrong_user_or_amount_issues_nothing(host: User, user: str, credits: str) -> None:
    with pytest.raises(CommandError):
        call_command("topup", user, credits)
    assert ledger.balance(ledger.account_of(host)).available == 0


def test_a_payment_with_a_reference_counts_once(host: User) -> None:
    for expected in ("host has 2.5 credits available\n", "INV-1 was issued before; nothing was issued now\nhost has"):
        out = StringIO()
        call_command("topup", "host", "2.5", reference="INV-1", stdout=out)
        assert out.getvalue().startswith(expected)
    call_command("topup", "host", "2.5", reference="INV-2", stdout=StringIO())
    assert ledger.balance(ledger.account_of(host)).available == 5_000_000


def test_another_way_to_pay_in_is_asked_once_and_a_refusal_issues_nothing(host: User) -> None:
    @dataclass
    class Bank:
        """A provider that knows of one transfer."""

        name: str = "bank"
        asked: int = 0

        def confirmed(self, reference: str) -> Payment:
            self.asked += 1
            if reference != "17":
                raise Refused(f"the bank knows nothing of {reference}")
            return Payment(host, 3_000_000, "transfer 17")

    bank = Bank()
    assert credit(bank, "17")[1]
    assert not credit(bank, "17")[1]
    assert bank.asked == 1
    with pytest.raises(Refused):
        credit(bank, "18")
    call_command("topup", "host", "1", reference="17", stdout=StringIO())  # the operator's 17 is another one
    assert ledger.balance(ledger.account_of(host)).available == 4_000_000
