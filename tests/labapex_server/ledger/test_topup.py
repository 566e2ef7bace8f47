from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger

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
