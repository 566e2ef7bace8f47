from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex.protocol.spec import micro_credits
from labapex_server.accounts.models import User
from labapex_server.ledger import services as ledger


class Command(BaseCommand):
    help = "Issue credits to a user's account."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user")
        parser.add_argument("credits", help="for example 2.5")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"there is no user {options['user']!r}")
        try:
            amount = int(micro_credits(options["credits"]))
            ledger.top_up(ledger.account_of(user), amount=amount, memo="issued by the operator")
        except ValueError as error:
            raise CommandError(f"credits: {error}") from None
        available = ledger.balance(ledger.account_of(user)).available
        self.stdout.write(f"{user} has {ledger.credits_text(available)} credits available")
