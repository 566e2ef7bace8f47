from __future__ import annotations

from datetime import timedelta

import pytest

from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Token, User
from labapex_server.lib import clock

pytestmark = pytest.mark.django_db


def test_a_token_opens_its_owners_account_and_only_its_digest_is_kept(researcher: User) -> None:
    secret = accounts.issue_token(researcher, name="laptop")
    assert accounts.authenticate_token(secret) == researcher
    row = Token.objects.get()
    assert secret not in (row.digest, row.prefix, row.name)
    assert secret.startswith(row.prefix)


@pytest.mark.parametrize("secret", ["", "lax_", "lax_wrong", "x" * 10_000, "lax_\x00", "lax_é"])
def test_anything_else_opens_nothing(researcher: User, secret: str) -> None:
    accounts.issue_token(researcher, name="")
    assert accounts.authenticate_token(secret) is None


def test_an_expired_revoked_or_locked_token_opens_nothing(researcher: User, other_researcher: User) -> None:
    secret = accounts.issue_token(researcher, name="")
    token = Token.objects.get()
    assert not accounts.revoke_token(other_researcher, token_id=token.pk)
    Token.objects.update(expires_at=clock.now() - timedelta(seconds=1))
    assert accounts.authenticate_token(secret) is None
    Token.objects.update(expires_at=None)
    User.objects.filter(pk=researcher.pk).update(is_active=False)
    assert accounts.authenticate_token(secret) is None
    User.objects.filter(pk=researcher.pk).update(is_active=True)
    assert accounts.revoke_token(researcher, token_id=token.pk)
    assert accounts.authenticate_token(secret) is None
