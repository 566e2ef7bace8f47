from __future__ import annotations

from datetime import timedelta

import pytest

from labapex.protocol.api import Scope
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import Token, User
from labapex_server.accounts.organisations import acting
from labapex_server.accounts.services import TokenRefused
from labapex_server.lib import clock

pytestmark = pytest.mark.django_db


def test_a_token_opens_its_owners_account_and_only_its_digest_is_kept(researcher: User) -> None:
    secret = accounts.issue_token(researcher, name="laptop")
    assert accounts.authenticate_token(secret).user == researcher
    row = Token.objects.get()
    assert secret not in (row.digest, row.prefix, row.name)
    assert secret.startswith(row.prefix)
    assert len(row.prefix) < len(secret) / 4


def test_a_token_can_be_told_from_a_typing_error_without_a_database() -> None:
    user = User(username="nobody")
    user.save()
    secret = accounts.issue_token(user, name="")
    assert accounts.well_formed(secret)
    for at in range(len("apex_"), len(secret)):
        other = "a" if secret[at] != "a" else "b"
        assert not accounts.well_formed(secret[:at] + other + secret[at + 1 :])
    assert not accounts.well_formed(secret[:-1])
    assert not accounts.well_formed(secret + "0")


@pytest.mark.parametrize("secret", ["", "apex_", "apex_wrong", "x" * 10_000, "apex_\x00", "apex_é", "lax_x"])
def test_anything_else_opens_nothing(researcher: User, secret: str) -> None:
    accounts.issue_token(researcher, name="")
    with pytest.raises(TokenRefused, match="is not one"):
        accounts.authenticate_token(secret)


def test_an_expired_revoked_or_locked_token_opens_nothing_and_the_refusal_names_it(
    researcher: User, other_researcher: User
) -> None:
    secret = accounts.issue_token(researcher, name="laptop")
    token = Token.objects.get()
    assert not accounts.revoke_token(acting(other_researcher, None), token_id=token.pk)
    Token.objects.update(expires_at=clock.now() - timedelta(seconds=1))
    with pytest.raises(TokenRefused, match=r"the token 'laptop' \(apex_....…\) expired on"):
        accounts.authenticate_token(secret)
    Token.objects.update(expires_at=None)
    User.objects.filter(pk=researcher.pk).update(is_active=False)
    with pytest.raises(TokenRefused, match="closed"):
        accounts.authenticate_token(secret)
    User.objects.filter(pk=researcher.pk).update(is_active=True)
    assert accounts.revoke_token(acting(researcher, None), token_id=token.pk)
    assert not accounts.revoke_token(acting(researcher, None), token_id=token.pk)
    with pytest.raises(TokenRefused, match=r"'laptop'.* was revoked on") as caught:
        accounts.authenticate_token(secret)
    assert secret[10:] not in str(caught.value)


def test_a_token_expires_by_itself_unless_it_is_said_otherwise(researcher: User) -> None:
    accounts.issue_token(researcher, name="usual")
    accounts.issue_token(researcher, name="short", days=7)
    accounts.issue_token(researcher, name="lasting", days=None)
    lives = {token.name: token.expires_at and token.expires_at - token.created_at for token in Token.objects.all()}
    assert lives == {"usual": timedelta(days=90), "short": timedelta(days=7), "lasting": None}


def test_a_token_has_the_scopes_that_it_was_made_with(researcher: User) -> None:
    secret = accounts.issue_token(researcher, name="ci", scopes=[Scope.JOBS_WRITE, Scope.JOBS_READ, Scope.JOBS_READ])
    assert accounts.authenticate_token(secret).granted == (Scope.JOBS_READ, Scope.JOBS_WRITE)
