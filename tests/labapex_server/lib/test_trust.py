"""The platform's own trust document: made without setup, handed over to a root that lies elsewhere, never back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from django.core.checks import run_checks
from django.test import Client
from tests.labapex.authority import Authority

from labapex import sealing
from labapex.errors import MalformedInput
from labapex.protocol.canonical import canonical
from labapex.protocol.trust import TrustDocument
from labapex.trust import NotTrusted, Trust, begin, read_chain, sign
from labapex_server.lib import keys, trust
from labapex_server.lib.errors import Conflict
from labapex_server.pulse import checks

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def _fresh(home: Path) -> None:
    pass


def owned(now: float, *, ends_in: float = 90 * DAY) -> Authority:
    """Keys of an operator, of which the manifest key lies here."""
    public = keys.new("manifest")
    private = keys.held("manifest")[keys.key_id(public)]
    authority = Authority(named={private: ("manifest", int(now) - 10, int(now) + 1000 * DAY)}, documents=[])
    authority.documents.clear()
    authority.issue(begins=int(now) - 10, ends=int(now + ends_in))
    return authority


def test_a_platform_that_is_given_no_root_makes_one_and_says_so() -> None:
    first = trust.chain()
    assert trust.chain() == first
    identity, private = trust.signer("manifest")
    named = trust.current().key(identity, "manifest", time.time())
    assert sealing.public_signing_key(private) == named.key
    (concern,) = trust.concerns(time.time())
    assert "the root key lies on this machine" in concern
    assert "trust sign --new-root" in concern


def test_workers_are_shown_the_chain_and_believe_it(client: Client) -> None:
    shown = client.get("/gateway/trust/")
    assert shown.status_code == 200
    assert begin(trust.root(), read_chain(shown.content)) == trust.current()
    assert client.post("/gateway/trust/").status_code == 405


def test_a_document_that_was_published_is_handed_out_and_an_older_one_never_again() -> None:
    authority = owned(time.time())
    first = authority.documents[0]
    trust.publish(first)
    assert trust.root() == authority.public_root
    assert trust.signer("manifest")[0] == authority.manifest_key
    assert trust.concerns(time.time()) == []
    second = authority.issue(begins=0, ends=int(time.time()) + 90 * DAY)
    trust.publish(second)
    with pytest.raises(NotTrusted, match="older ones are refused"):
        trust.publish(first)
    with pytest.raises(NotTrusted, match="must be signed by"):
        trust.publish(Authority().issue(version=3, ends=int(time.time()) + 90 * DAY))
    expired = authority.issue(begins=0, ends=1000)
    with pytest.raises(NotTrusted, match="expired"):
        trust.publish(expired)
    assert trust.current().document == second.document


def test_a_root_on_the_machine_is_handed_over_to_one_elsewhere_and_every_worker_follows() -> None:
    before = trust.current()
    local = keys.local_root()
    assert local is not None
    new = sealing.new_signing_keys()[0]
    document = before.document.model_copy(update={"version": 2, "root": sealing.public_signing_key(new)})
    trust.publish(sign(document, local, new))
    later = document.model_copy(update={"version": 3})
    trust.publish(sign(later, new))
    assert [signed.document.version for signed in trust.chain().documents] == [2, 3]
    assert before.follow(trust.chain()).root == sealing.public_signing_key(new)
    assert begin(sealing.public_signing_key(new), trust.chain()).document == later
    (concern,) = trust.concerns(time.time())
    assert "counts no longer: delete it" in concern


def test_of_several_keys_the_latest_signs_and_a_retired_one_still_counts_for_what_it_signed() -> None:
    now = time.time()
    authority = owned(now)
    old = authority.manifest_key
    trust.publish(authority.documents[0])
    public = keys.new("manifest")
    fresh = keys.held("manifest")[keys.key_id(public)]
    assert trust.signer("manifest")[0] == old, "a key that no document names signs nothing"
    authority.named = {key: (role, since, int(now) + 7 * DAY) for key, (role, since, _) in authority.named.items()}
    authority.named[fresh] = ("manifest", int(now), int(now) + 1000 * DAY)
    trust.publish(authority.issue(begins=0, ends=int(now) + 90 * DAY))
    assert trust.signer("manifest")[0] == keys.key_id(public)
    assert trust.current().key(old, "manifest", now).id == old


def test_a_platform_without_a_key_that_counts_signs_nothing_and_says_what_to_do() -> None:
    authority = Authority()
    trust.publish(authority.documents[0])
    with pytest.raises(Conflict, match="trust sign"):
        trust.signer("manifest")


@pytest.mark.parametrize(
    ("days", "said"), [(90, None), (trust.WARNING_DAYS + 1, None), (20, "expires in"), (1, "expires in 1.0 days")]
)
def test_a_document_near_its_end_is_spoken_of(days: float, said: str | None, client: Client, db: None) -> None:
    trust.publish(owned(time.time(), ends_in=days * DAY + 60).documents[0])
    warnings = [message.msg for message in run_checks() if message.id == "labapex.W001"]
    checks.forget()
    health = client.get("/readyz", headers={"Host": "localhost"})
    assert health.status_code == 200
    if said is None:
        assert warnings == []
        assert "ok trust\n" in health.content.decode()
    else:
        (warning,) = warnings
        assert said in warning
        assert f"warning trust: {warning}"[:40] in health.content.decode()


def test_an_expired_document_and_keys_that_end_before_it_are_spoken_of() -> None:
    now = time.time()
    trust.publish(owned(now).documents[0])
    (expired,) = trust.ending(now + 100 * DAY)
    assert "no worker starts a job" in expired
    authority = owned(now)
    authority.documents = [trust.chain().documents[-1]]
    assert not list(trust.ending(now))


def test_a_document_that_the_platform_signs_itself_is_renewed_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trust, "LOCAL_DAYS", trust.WARNING_DAYS - 1)
        first = trust._sign_for_itself(None)
    renewed = trust.chain()
    assert renewed.documents[-1].document.version == 2
    assert Trust(signed=first.documents[-1]).follow(renewed).document == renewed.documents[-1].document
    assert trust.signer("manifest")[0] in {key.id for key in first.documents[-1].document.keys}
    assert trust.chain() == renewed


def test_a_damaged_file_is_refused_and_not_made_anew() -> None:
    trust.chain()
    damaged = trust.path().read_bytes()[:-1]
    trust.path().write_bytes(damaged)
    with pytest.raises(MalformedInput):
        trust.chain()
    assert trust.path().read_bytes() == damaged


def test_the_file_is_what_is_shown(client: Client) -> None:
    assert trust.path().exists() is False
    shown = client.get("/gateway/trust/").content
    assert trust.path().read_bytes() == shown == canonical(trust.chain())
    assert isinstance(trust.current().document, TrustDocument)
