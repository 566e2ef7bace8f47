"""Who is asked, and with which token."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest
from tests.labapex.memory_platform import (
    TOKEN,
    URL,
    MemoryPlatform,
)

from labapex.client import Client, credentials
from labapex.errors import (
    NotLoggedIn,
    UsageError,
)


def test_login_makes_a_token_that_is_used_from_then_on(platform: MemoryPlatform, user_home: Path) -> None:
    client = Client(URL, transport=platform.transport)
    assert client.login("ada", "secret").token == TOKEN
    assert client.me().username == "ada"


def test_a_wrong_password_is_said_and_not_tried_again(platform: MemoryPlatform, user_home: Path) -> None:
    client = Client(URL, transport=platform.transport)
    with pytest.raises(NotLoggedIn, match="wrong user name or password"):
        client.login("ada", "wrong")
    assert len(platform.seen) == 1


def test_a_refused_token_is_named_by_its_source_and_first_characters(
    platform: MemoryPlatform, user_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPEX_TOKEN", "old-token-that-was-revoked")
    client = Client(URL, transport=platform.transport)
    with pytest.raises(NotLoggedIn, match=r"'old-to…' from the environment variable LABAPEX_TOKEN") as caught:
        client.me()
    assert "revoked" not in str(caught.value)


def test_the_environment_beats_the_stored_login_and_the_argument_beats_both(user_home: Path) -> None:
    entry = credentials.Login(username="ada", token="from-the-file")
    credentials.save(credentials.Logins(current=URL, platforms={URL: entry}))
    address, token = credentials.resolve(None, None, {})
    assert (address, token and token.text) == (URL, "from-the-file")
    _, token = credentials.resolve(None, None, {"LABAPEX_TOKEN": "from-the-environment"})
    assert token
    assert token.text == "from-the-environment"
    _, token = credentials.resolve(None, "given", {"LABAPEX_TOKEN": "from-the-environment"})
    assert token
    assert token.text == "given"


def test_a_stored_token_never_goes_to_another_platform(platform: MemoryPlatform, user_home: Path) -> None:
    entry = credentials.Login(username="ada", token=TOKEN)
    credentials.save(credentials.Logins(current=URL, platforms={URL: entry}))
    client = Client("https://evil.test", transport=platform.transport)
    with pytest.raises(NotLoggedIn, match=r"labapex login --url https://evil\.test"):
        client.me()
    assert platform.seen == []


def test_a_redirect_is_not_followed_with_the_token(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: httpx.Response(302, headers={"Location": "https://evil.test/"}))
    with pytest.raises(UsageError, match=r"redirects to https://evil\.test/"):
        client.me()
    assert len(platform.seen) == 1


def test_the_login_file_is_for_its_owner_alone(user_home: Path) -> None:
    credentials.save(credentials.Logins())
    assert stat.S_IMODE(credentials.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(credentials.path().parent.stat().st_mode) == 0o700


def test_a_damaged_login_file_says_what_to_do(user_home: Path) -> None:
    credentials.path().parent.mkdir(parents=True)
    credentials.path().write_text("{")
    with pytest.raises(UsageError, match="delete it and run `labapex login`"):
        Client()


def test_without_a_platform_the_error_says_how_to_name_one(user_home: Path) -> None:
    with pytest.raises(NotLoggedIn, match="LABAPEX_URL"):
        Client()


@pytest.mark.parametrize("token", ["with space", "line\nfeed", "ü", "x" * 501])
def test_a_token_that_cannot_be_a_header_is_refused_with_its_source(user_home: Path, token: str) -> None:
    with pytest.raises(NotLoggedIn, match="the program's own argument"):
        Client(URL, token)


@pytest.mark.parametrize(
    "url", ["apex.test", "ftp://apex.test", "https://", "https://u:p@apex.test", "http://a:99999999"]
)
def test_an_address_that_is_none_is_refused(user_home: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"https://apex\.example\.org"):
        Client(url)


def test_the_token_is_not_in_the_representation_of_what_holds_it() -> None:
    assert TOKEN not in repr(credentials.Token(TOKEN, "a test"))
    assert TOKEN not in repr(credentials.Login(username="ada", token=TOKEN))


def test_a_device_login_asks_slower_when_it_is_told_to(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.words.extend(["authorization-pending", "slow-down", "slow-down"])
    assert client.await_login(client.begin_login("laptop")).token == TOKEN
    assert sleeps == [5.0, 5.0, 10.0, 15.0]


def test_a_device_login_that_nobody_answers_ends(platform: MemoryPlatform, client: Client) -> None:
    platform.words.extend(["authorization-pending"] * 1000)
    with pytest.raises(NotLoggedIn, match="in time"):
        client.await_login(client.begin_login())


def test_an_enrolment_code_is_asked_for_once(platform: MemoryPlatform, client: Client) -> None:
    assert client.enrolment_code().code == "ABCD-EFGH"
