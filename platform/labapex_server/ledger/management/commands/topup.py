from __future__ import annotations

from typing import Any
from uuid import uuid4

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex.protocol.spec import micro_credits
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger
from labapex_server.ledger.payments import Operator, Payment, credit


class Command(BaseCommand):
    help = "Issue credits to a user's account."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user")
        parser.add_argument("credits", help="for example 2.5")
        parser.add_argument("--reference", help="of the payment, such as an invoice's number: it counts once")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"there is no user {options['user']!r}")
        try:
            amount = int(micro_credits(options["credits"]))
            given = options["reference"]
            memo = f"issued by the operator{f', {given}' if given else ''}"
            operator = Operator(Payment(user, amount, memo[:200]))
            _, new = credit(operator, (given or str(uuid4()))[:150])
        except ValueError as error:
            raise CommandError(f"credits: {error}") from None
        if not new:
            self.stdout.write(f"{options['reference']} was issued before; nothing was issued now")
        available = ledger.balance(ledger.account_of(user)).available
        self.stdout.write(f"{user} has {ledger.credits_text(available)} credits available")
