from __future__ import annotations

import io

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform, unreachable

from labapex.client import credentials
from labapex.protocol.api import Scope


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who types the right password into a pipe, and has nothing in the environment."""
    monkeypatch.delenv("LABAPEX_TOKEN")
    monkeypatch.delenv("LABAPEX_URL")
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))


def test_login_is_remembered_and_logout_forgets(labapex: Labapex, password: None) -> None:
    result = labapex("login", "--url", URL + "/", "--username", "ada", "--password-stdin")
    assert result.code == 0
    assert TOKEN not in result.out + result.err
    assert "ada at https://apex.test" in labapex("whoami").out
    assert labapex("logout").code == 0
    assert labapex("whoami").code == 3
    assert labapex("logout").code == 3


def test_a_wrong_password_exits_3_and_stores_nothing(
    labapex: Labapex, password: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("guess\n"))
    assert labapex("login", "--url", URL, "--username", "ada", "--password-stdin").code == 3
    assert not credentials.path().exists()


def test_an_empty_password_is_a_usage_error(labapex: Labapex, password: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert labapex("login", "--url", URL, "--username", "ada", "--password-stdin").code == 2


def test_whoami_shows_the_balance_in_credits_and_as_json_in_micro_credits(
    labapex: Labapex, platform: MemoryPlatform
) -> None:
    platform.available = 2_500_000
    assert "2.5 credits available" in labapex("whoami").out
    told = labapex("whoami", "--json").json
    assert (told["username"], told["available"], told["held"]) == ("ada", 2_500_000, 0)


def test_whoami_says_what_the_token_may_do_and_until_when(labapex: Labapex) -> None:
    assert "'laptop' (tok-1234…), until 2026-09-21: everything" in labapex("whoami").out


def test_login_without_a_name_shows_a_code_and_waits_for_a_persons_word(
    labapex: Labapex, platform: MemoryPlatform, password: None
) -> None:
    platform.words.extend(["authorization-pending", "slow-down"])
    result = labapex("login", "--url", URL, "--scope", "jobs:read")
    assert result.code == 0, result.err
    assert "https://apex.test/device/?code=WDJB-MJHT" in result.err
    assert TOKEN not in result.out + result.err
    assert platform.asked.scopes == (Scope.JOBS_READ,)
    assert platform.asked.name.startswith("labapex on ")
    assert "ada at https://apex.test" in labapex("whoami").out


@pytest.mark.parametrize("word", ["access-denied", "expired-token"])
def test_a_login_that_was_refused_or_forgotten_exits_3_and_stores_nothing(
    labapex: Labapex, platform: MemoryPlatform, password: None, word: str
) -> None:
    platform.words.append(word)
    assert labapex("login", "--url", URL).code == 3
    assert not credentials.path().exists()


def test_logout_revokes_the_token_where_the_platform_answers(
    labapex: Labapex, platform: MemoryPlatform, password: None
) -> None:
    labapex("login", "--url", URL)
    assert "it opens nothing any more" in labapex("logout").err
    assert platform.revoked


def test_logout_forgets_the_token_even_where_the_platform_is_away(
    labapex: Labapex, platform: MemoryPlatform, password: None
) -> None:
    labapex("login", "--url", URL)
    platform.faults.append(unreachable)
    platform.faults.extend([unreachable] * 10)
    result = labapex("logout")
    assert result.code == 0
    assert "revoke" in result.err
    assert credentials.load().platforms == {}


def test_an_unknown_command_is_exit_2_with_the_right_spelling(labapex: Labapex) -> None:
    result = labapex("verfy")
    assert (result.code, "verify" in result.err) == (2, True)


def test_the_version_can_be_asked_for(labapex: Labapex) -> None:
    result = labapex("--version")
    assert result.code == 0
    assert result.out.strip()


def test_a_login_for_an_organisation_is_kept_beside_ones_own_and_chosen_by_org(
    labapex: Labapex, password: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\nsecret\n"))
    labapex("login", "--url", URL, "--username", "ada", "--password-stdin")
    monkeypatch.setenv("LABAPEX_ORG", "acme")
    told = labapex("login", "--url", URL, "--username", "ada", "--password-stdin")
    assert "as ada for acme" in told.err
    assert set(credentials.load().platforms) == {URL, f"{URL}#acme"}
    monkeypatch.delenv("LABAPEX_ORG")
    assert credentials.load().current == f"{URL}#acme"  # as it was used last
    assert labapex("whoami").code == 0
    refused = labapex("--org", "others", "whoami")
    assert refused.code == 3
    monkeypatch.delenv("LABAPEX_ORG", raising=False)
    assert labapex("--org", "", "logout").code == 0
    assert set(credentials.load().platforms) == {f"{URL}#acme"}
