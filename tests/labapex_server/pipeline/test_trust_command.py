"""The run-book: a root key on another machine, a rotated manifest key, a rotated root, a revoked key, releases."""

from __future__ import annotations

import json
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import Client
from tests.labapex_runner.jobs import fake_runner

from labapex.protocol.trust import SignedRelease
from labapex.trust import NotTrusted
from labapex_server.lib import keys, trust
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace import releases

PASSPHRASE = "five words that nobody would guess"


def manage(*typed: object) -> str:
    out = StringIO()
    call_command(*map(str, typed), stdout=out, stderr=StringIO())
    return out.getvalue().strip()


class Operator:
    """Someone with a medium that is no server."""

    def __init__(self, medium: Path) -> None:
        self.medium = medium
        medium.mkdir()
        self.secret = medium / "passphrase"
        self.secret.touch(mode=0o600)
        self.secret.write_text(PASSPHRASE + "\n")

    def key(self, *typed: object) -> str:
        return manage("trust", *typed, "--passphrase-file", self.secret)

    def sign(self, *typed: object, root: str = "root.pem", after: bool = True) -> Path:
        out = self.medium / "signed.json"
        today = ("--after", trust.path()) if after else ()
        key = ("--root", self.medium / root, "--passphrase-file", self.secret)
        manage("trust", "sign", *key, *today, *typed, "--out", out)
        return out


@pytest.fixture
def operator(home: Path, tmp_path: Path) -> Operator:
    """Has set up a platform with a root that never was on it."""
    made = Operator(tmp_path / "medium")
    made.key("root", made.medium / "root.pem")
    manifest, release = manage("trust", "key", "manifest"), made.key("key", "release", made.medium / "release.pem")
    manage("trust", "publish", made.sign("--add", manifest, "--add", release, after=False))
    return made


def test_a_platform_begins_with_a_root_key_that_never_was_on_it(operator: Operator, home: Path) -> None:
    assert keys.local_root() is None
    assert keys.held("release") == {}
    assert trust.concerns(time.time()) == []
    assert trust.signer("manifest")[0] in keys.held("manifest")
    shown = json.loads(manage("trust", "show", "--json"))
    assert (shown["version"], shown["concerns"]) == (1, [])
    assert shown["fingerprint"] in manage("trust", "show")


def test_a_manifest_key_is_rotated_and_the_old_one_counts_until_its_leases_have_ended(
    operator: Operator, settings: Any
) -> None:
    old, _ = trust.signer("manifest")
    manage("trust", "publish", operator.sign("--add", manage("trust", "key", "manifest"), "--retire", old))
    new, _ = trust.signer("manifest")
    assert new != old
    believed, now, lasts = trust.current(), time.time(), settings.LABAPEX.lease_limit_seconds
    believed.key(old, "manifest", now + lasts - 60)
    with pytest.raises(NotTrusted, match="expired"):
        believed.key(old, "manifest", now + lasts + 60)


def test_a_stolen_key_is_revoked_at_once(operator: Operator) -> None:
    stolen, _ = trust.signer("manifest")
    manage("trust", "publish", operator.sign("--add", manage("trust", "key", "manifest"), "--revoke", stolen))
    with pytest.raises(NotTrusted, match="does not name"):
        trust.current().key(stolen, "manifest", time.time())


def test_a_root_key_is_exchanged_and_the_old_one_signs_no_more(operator: Operator) -> None:
    before = trust.current()
    operator.key("root", operator.medium / "second.pem")
    manage("trust", "publish", operator.sign("--new-root", operator.medium / "second.pem"))
    assert before.follow(trust.chain()).root == trust.root() != before.root
    with pytest.raises(CommandError, match="the document names the root key"):
        operator.sign()
    manage("trust", "publish", operator.sign(root="second.pem"))
    assert before.follow(trust.chain()).document.version == 3


def test_a_root_that_lay_on_the_server_is_handed_over(home: Path, tmp_path: Path) -> None:
    trust.chain()
    operator = Operator(tmp_path / "medium")
    (operator.medium / "local").write_bytes((home / "keys" / "root").read_bytes())
    operator.key("root", operator.medium / "root.pem")
    manage("trust", "publish", operator.sign("--new-root", operator.medium / "root.pem", root="local"))
    (home / "keys" / "root").unlink()
    assert trust.concerns(time.time()) == []


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (("root", "{home}/root.pem"), "lies in the platform's home"),
        (("root", "{medium}/root.pem"), "cannot be made"),
        (("key", "release"), "name a file"),
        (("key", "release", "{home}/keys/release.pem"), "lies in the platform's home"),
    ],
    ids=["in the home", "twice", "a release key on the server", "a release key in the home"],
)
def test_keys_that_no_server_needs_are_not_made_where_a_server_has_them(
    operator: Operator, home: Path, typed: tuple[str, ...], why: str
) -> None:
    with pytest.raises(CommandError, match=why):
        operator.key(*(part.format(home=home, medium=operator.medium) for part in typed))


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        (("--retire", "0" * 16), "names no key"),
        (("--add", "manifest:AAAA"), "is no key"),
        (("--add", "root:" + "A" * 43 + "="), "is no key"),
        (("--days", "-1"), "no trust document"),
    ],
)
def test_what_cannot_be_signed_is_said(operator: Operator, typed: tuple[str, ...], why: str) -> None:
    with pytest.raises(CommandError, match=why):
        operator.sign(*typed)


def test_a_root_key_opens_with_its_passphrase_only_and_a_short_one_is_refused(operator: Operator) -> None:
    assert PASSPHRASE.encode() not in (operator.medium / "root.pem").read_bytes()
    assert (operator.medium / "root.pem").stat().st_mode & 0o077 == 0
    operator.secret.write_text("another passphrase altogether")
    with pytest.raises(CommandError, match="does not open"):
        operator.sign()
    operator.secret.write_text("too short")
    with pytest.raises(CommandError, match="20 characters"):
        operator.key("root", operator.medium / "other.pem")
    operator.secret.chmod(0o644)
    with pytest.raises(CommandError, match="chmod 600"):
        operator.sign()


# -- runners -----------------------------------------------------------------------------------------------------------


def test_a_runner_is_given_out_once_a_release_key_states_it(operator: Operator, tmp_path: Path) -> None:
    runner = fake_runner(tmp_path / "runner")
    with pytest.raises(Conflict, match="no release names it; sign and publish it"):
        releases.of_runner(runner)
    statement = operator.medium / "runner.json"
    key = ("--key", operator.medium / "release.pem", "--passphrase-file", operator.secret)
    manage("release", "sign", "runner", tmp_path / "runner", "--version", "1.2", *key, "--out", statement)
    manage("release", "publish", statement)
    signed = releases.of_runner(runner)
    assert signed == SignedRelease.model_validate_json(statement.read_bytes())
    assert (signed.release.version, signed.release.minimum) == ("1.2", "1.2")
    assert trust.current().release(signed, "runner", time.time()).digest == runner.digest


def test_a_statement_that_workers_would_refuse_is_not_published(operator: Operator, tmp_path: Path) -> None:
    fake_runner(tmp_path / "runner")
    statement = operator.medium / "runner.json"
    operator.key("key", "release", operator.medium / "unknown.pem")
    key = ("--key", operator.medium / "unknown.pem", "--passphrase-file", operator.secret)
    manage("release", "sign", "runner", tmp_path / "runner", "--version", "1.2", *key, "--out", statement)
    with pytest.raises(CommandError, match="does not name"):
        manage("release", "publish", statement)


# -- agents ------------------------------------------------------------------------------------------------------------


def wheel_of(operator: Operator, version: str, content: bytes) -> tuple[Path, Path]:
    """A wheel, and its statement by the operator's release key."""
    wheel, statement = operator.medium / f"labapex-{version}-py3-none-any.whl", operator.medium / f"{version}.json"
    wheel.write_bytes(content)
    key = ("--key", operator.medium / "release.pem", "--passphrase-file", operator.secret)
    manage("release", "sign", "agent", wheel, "--version", version, *key, "--out", statement)
    return wheel, statement


def test_an_agent_is_offered_once_it_is_published_and_from_any_byte_on(operator: Operator, client: Client) -> None:
    assert client.get("/gateway/releases/agent").status_code == 404
    wheel, statement = wheel_of(operator, "1.4", b"a wheel")
    manage("release", "publish", statement, wheel)
    offered = SignedRelease.model_validate_json(client.get("/gateway/releases/agent").content)
    trust.current().release(offered, "agent", time.time())
    path = f"/gateway/releases/agent/{offered.release.digest}"
    whole, rest = client.get(path), client.get(path, headers={"range": "bytes=2-"})
    assert (whole.status_code, whole.content) == (200, b"a wheel")
    assert (rest.status_code, rest.content, rest["content-range"]) == (206, b"wheel", "bytes 2-6/7")
    assert client.get(path, headers={"range": "bytes=7-"}).status_code == 416
    for other in ("0" * 64, "..", "agent.json"):
        assert client.get(f"/gateway/releases/agent/{other}").status_code == 404


def test_an_older_agent_another_wheel_and_a_strange_name_are_refused(operator: Operator) -> None:
    new_wheel, new = wheel_of(operator, "1.10", b"new")
    old_wheel, old = wheel_of(operator, "1.9", b"old")
    with pytest.raises(CommandError, match="name the wheel"):
        manage("release", "publish", new, old_wheel)
    with pytest.raises(CommandError, match="name the wheel"):
        manage("release", "publish", new)
    manage("release", "publish", new, new_wheel)
    with pytest.raises(CommandError, match="never go back"):
        manage("release", "publish", old, old_wheel)
    key = ("--key", operator.medium / "release.pem", "--passphrase-file", operator.secret)
    with pytest.raises(CommandError, match="is not labapex-2"):
        manage("release", "sign", "agent", new_wheel, "--version", "2", *key, "--out", new)


def test_a_platform_that_set_itself_up_states_what_it_froze(home: Path, tmp_path: Path) -> None:
    first = releases.of_runner(fake_runner(tmp_path / "first"))
    assert releases.of_runner(fake_runner(tmp_path / "first")) == first
    second = releases.of_runner(fake_runner(tmp_path / "second", code=b"other" * 50))
    believed = trust.current().saw(first)
    believed.release(second, "runner", time.time())
    believed.saw(second).release(first, "runner", time.time())  # both are of this version of the sources
