"""Where this platform differs from django-allauth, which does all signing in: its settings stand in `settings`."""

from __future__ import annotations

import re

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.models import EmailAddress
from allauth.account.stages import EmailVerificationStage
from allauth.mfa.adapter import DefaultMFAAdapter
from django.core.validators import RegexValidator
from django.http import HttpResponse

from labapex_server.lib import keys

NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
USERNAME = [RegexValidator(NAME, "Use letters, digits and . + - _ and begin with no sign.")]
"""No @: what holds one is an e-mail address, so that nobody takes the address of another as a name."""

SECOND_FACTOR = "second-factor"


class ConfirmedAddress(EmailVerificationStage):  # type: ignore[misc]
    """Who signed up has an address and confirms it. An account without any was made at the operator's shell."""

    def handle(self) -> tuple[HttpResponse | None, bool]:
        if not EmailAddress.objects.filter(user=self.login.user).exists():
            return None, True
        answered: tuple[HttpResponse | None, bool] = super().handle()
        return answered


class Accounts(DefaultAccountAdapter):  # type: ignore[misc]
    def get_login_stages(self) -> list[str]:
        """With our own words on who has to confirm an address."""
        ours = f"{__name__}.{ConfirmedAddress.__name__}"
        theirs = f"{EmailVerificationStage.__module__}.{EmailVerificationStage.__name__}"
        return [ours if stage == theirs else stage for stage in super().get_login_stages()]


class SecondFactors(DefaultMFAAdapter):  # type: ignore[misc]
    """Secrets of authenticator apps and recovery codes lie in the database only sealed."""

    def encrypt(self, text: str) -> str:
        return keys.wrap(text.encode(), SECOND_FACTOR).hex()

    def decrypt(self, encrypted_text: str) -> str:
        return keys.unwrap(bytes.fromhex(encrypted_text), SECOND_FACTOR).decode()
