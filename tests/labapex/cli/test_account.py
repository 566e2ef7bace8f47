from __future__ import annotations

import io

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import TOKEN, URL, MemoryPlatform

from labapex.client import credentials


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
    assert labapex("whoami", "--json").json == {"username": "ada", "available": 2_500_000, "held": 0}


def test_an_unknown_command_is_exit_2_with_the_right_spelling(labapex: Labapex) -> None:
    result = labapex("verfy")
    assert (result.code, "verify" in result.err) == (2, True)


def test_the_version_can_be_asked_for(labapex: Labapex) -> None:
    result = labapex("--version")
    assert result.code == 0
    assert result.out.strip()
