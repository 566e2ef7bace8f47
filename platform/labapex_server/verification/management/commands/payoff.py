"""`manage.py payoff`: whether cheating pays at the present settings. docs/proof-of-learning.md, What it costs to be caught."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from labapex.proof.challenge import RANKED_EPOCHS
from labapex.protocol.spec import CREDIT
from labapex_server.verification import audit, payoff

_SHARES = (1, 5, 10, 50)  # per cent of a run's segments that are false, and not trained


class Command(BaseCommand):
    help = "Print what lies bring a host on average, over honest work, and which deposit would make them worth nothing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--segments", type=int, default=1000, help="of the run (default: 1000)")
        parser.add_argument("--hours", type=float, default=1.0, help="of the run, at the reference price (default: 1)")
        parser.add_argument("--deposit", type=float, default=0.0, help="on the host, in credits (default: 0)")

    def handle(self, *args: Any, **options: Any) -> None:
        made, pay = options["segments"], round(settings.LABAPEX.reference_price_per_hour * options["hours"])
        locked = round(options["deposit"] * CREDIT)
        if made < 1 or pay < 1 or locked < 0:
            raise CommandError("--segments must be at least 1, --hours above 0, and --deposit no less than 0")
        self.stdout.write(
            f"A run of {made} segments that pays {pay / CREDIT:g} credits, which are forfeited when a lie is found, with a"
            f" deposit of {locked / CREDIT:g}. By the random draw alone:"
        )
        self.stdout.write("host         drawn   lie  caught     saves      gain  pays  deposit needed")
        lies = [(max(1, made * percent // 100), f"{percent} %") for percent in _SHARES]
        for trusted in (False, True):
            drawn = audit.segments(made, epochs=RANKED_EPOCHS, trusted=trusted, full=settings.LABAPEX.audit_segments)
            for false, lie in [*lies, (1, "once")]:
                caught = payoff.caught(drawn=drawn, false=false, segments=made)
                saved = Fraction(1) if lie == "once" else Fraction(false, made)
                gain = payoff.gain(caught=caught, saved=saved, pay=pay, deposit=locked)
                deposit = payoff.deposit_needed(caught=caught, saved=saved, pay=pay)
                self.stdout.write(
                    f"{'trusted' if trusted else 'not trusted':<12} {drawn:>5} {lie:>5} {float(caught):>7.1%}"
                    f" {float(saved) * pay / CREDIT:>9.4f} {float(gain) / CREDIT:>9.4f}"
                    f"  {'YES' if gain > 0 else 'no':<4} {deposit / CREDIT:>15.4f}"
                )
        self.stdout.write(
            "once: one state is exchanged for one from which all that follows costs nothing, the most that a lie can save. Abrupt"
            " changes are replayed and searches look for it, besides the draw (docs/threat-model.md, What is not protected)."
        )
