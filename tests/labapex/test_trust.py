"""Who pinned a root key believes what follows from it, for as long as it holds, and never goes back."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.authority import BEGAN, ENDS, Authority, new_key

from labapex import sealing, trust
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import canonical
from labapex.protocol.trust import SignedRelease, SignedTrust, TrustChain, TrustDocument, order
from labapex.trust import SKEW_SECONDS, NotTrusted, Trust, begin, fingerprint, read_chain

NOW = 1_900_000_000.0
DIGEST = "ab" * 32
GOOD = Authority()


def chain(*documents: SignedTrust) -> TrustChain:
    return TrustChain(documents=documents)


def test_what_the_root_signed_is_believed_and_names_the_keys() -> None:
    believed = begin(GOOD.public_root, read_chain(GOOD.shown))
    key = believed.key(GOOD.manifest_key, "manifest", NOW)
    assert key.key == sealing.public_signing_key(GOOD.private("manifest"))
    assert believed.why_not(NOW) is None
    assert believed.follow(GOOD.chain) == believed


@given(st.data())
def test_no_other_bytes_are_believed(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD.shown) - 1), label="at")
    bit = data.draw(st.integers(0, 7), label="bit")
    bent = bytearray(GOOD.shown)
    bent[at] ^= 1 << bit
    with pytest.raises(MalformedInput):
        begin(GOOD.public_root, read_chain(bytes(bent)))


def mutations() -> list[tuple[str, Any]]:
    document = GOOD.documents[0].document
    first, second = document.keys
    return [
        ("version", 2),
        ("root", new_key()),
        ("issued_at", BEGAN + 1),
        ("expires_at", ENDS + 1),
        ("keys", (first,)),
        ("keys", (second, first)),
        ("keys", (first.model_copy(update={"not_after": ENDS + 1}), second)),
        ("keys", (first.model_copy(update={"not_before": BEGAN + 1}), second)),
        ("keys", (first.model_copy(update={"key": new_key()}), second)),
        ("keys", (first.model_copy(update={"role": "release"}), second)),
    ]


@pytest.mark.parametrize(("name", "value"), mutations(), ids=[f"{n}-{name}" for n, (name, _) in enumerate(mutations())])
def test_a_document_with_another_field_is_refused(name: str, value: Any) -> None:
    signed = GOOD.documents[0]
    bent = signed.model_copy(update={"document": signed.document.model_copy(update={name: value})})
    with pytest.raises(Tampered):
        begin(GOOD.public_root, chain(bent))


def test_a_signature_with_any_other_bit_is_refused() -> None:
    signed = GOOD.documents[0]
    (one,) = signed.signatures
    for bit in range(512):
        bent = bytearray(one.signature)
        bent[bit // 8] ^= 1 << bit % 8
        broken = signed.model_copy(update={"signatures": (one.model_copy(update={"signature": bytes(bent)}),)})
        with pytest.raises(Tampered):
            begin(GOOD.public_root, chain(broken))


def test_a_document_of_another_root_is_refused_and_so_is_one_that_carries_a_signature_too_many() -> None:
    other = Authority()
    with pytest.raises(NotTrusted, match="no trust document here is signed by the root key"):
        begin(GOOD.public_root, other.chain)
    (mine,), (theirs,) = GOOD.documents[0].signatures, other.documents[0].signatures
    for signatures in ((mine, mine), (mine, theirs)):
        with pytest.raises(Tampered):
            begin(GOOD.public_root, chain(GOOD.documents[0].model_copy(update={"signatures": signatures})))
    stranger = trust.sign(GOOD.document(), GOOD.root, other.root)
    with pytest.raises(NotTrusted, match="must be signed by"):
        GOOD.trust.follow(chain(stranger))


@pytest.mark.parametrize(
    "text",
    [
        GOOD.shown + b" ",
        GOOD.shown.replace(b'"version":1', b'"version":"1"'),
        GOOD.shown.replace(b'"version":1', b'"admin":true,"version":1'),
        GOOD.shown.replace(b'"role":"release"', b'"role":"root"'),
        b"{}",
        b"[" * 300_000,
    ],
    ids=["padded", "a number as text", "an unknown field", "an unknown role", "empty", "too long"],
)
def test_a_document_in_another_form_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedInput):
        read_chain(text)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_an_older_document_is_refused_and_so_is_another_one_of_the_same_version() -> None:
    authority = Authority()
    first = authority.documents[0]
    other = authority.other()
    authority.issue()
    believed = authority.trust
    with pytest.raises(NotTrusted, match="version 2 was seen before"):
        believed.follow(chain(first))
    with pytest.raises(NotTrusted, match="two different"):
        believed.follow(chain(other.issue(ends=ENDS + 1)))
    assert believed.follow(authority.chain) == believed


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_whatever_comes_in_whatever_order_the_version_never_falls(shown: list[int]) -> None:
    authority = Authority()
    documents = {version: authority.documents[0] if version == 1 else authority.issue() for version in range(1, 7)}
    believed, highest = begin(authority.public_root, chain(documents[shown[0]])), shown[0]
    for version in shown[1:]:
        if version < highest:
            with pytest.raises(NotTrusted):
                believed.follow(chain(documents[version]))
        else:
            believed, highest = believed.follow(chain(documents[version])), version
        assert believed.document.version == highest


def test_documents_that_are_not_in_order_are_refused() -> None:
    authority = Authority()
    authority.issue()
    with pytest.raises(NotTrusted, match="order"):
        begin(authority.public_root, chain(*reversed(authority.documents)))


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (BEGAN + 1000 - SKEW_SECONDS - 1, "not valid yet"),
        (BEGAN + 1000 - SKEW_SECONDS, None),
        (2000 - 1, None),
        (2000, "expired"),
        (float("nan"), "clock"),
    ],
)
def test_a_document_counts_from_its_first_second_to_before_its_last(now: float, why: str | None) -> None:
    authority = Authority()
    authority.issue(begins=1000, ends=2000)
    believed = authority.trust
    if why is None:
        believed.key(authority.manifest_key, "manifest", now)
    else:
        with pytest.raises(NotTrusted, match=why):
            believed.key(authority.manifest_key, "manifest", now)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (1000 - SKEW_SECONDS - 1, "not valid yet"),
        (1000 - SKEW_SECONDS, None),
        (1999, None),
        (2000, "has expired"),
    ],
)
def test_a_key_counts_in_its_window_only(now: float, why: str | None) -> None:
    authority = Authority(named={new_key(): ("manifest", 1000, 2000)})
    believed = authority.trust
    if why is None:
        believed.key(authority.manifest_key, "manifest", now)
    else:
        with pytest.raises(NotTrusted, match=why):
            believed.key(authority.manifest_key, "manifest", now)


def test_an_expired_document_still_forbids_going_back() -> None:
    authority = Authority()
    first = authority.documents[0]
    authority.issue(ends=1000)
    with pytest.raises(NotTrusted, match="older ones are refused"):
        authority.trust.follow(chain(first))


# -- roles and keys ----------------------------------------------------------------------------------------------------


def test_a_key_signs_in_its_own_role_only() -> None:
    release = GOOD.state("runner", version="1.0", digest=DIGEST, size=1)
    with pytest.raises(NotTrusted, match="is a release key"):
        GOOD.trust.key(release.key, "manifest", NOW)
    forged = trust.sign_release(release.release, GOOD.private("manifest"))
    with pytest.raises(NotTrusted, match="is a manifest key"):
        GOOD.trust.release(forged, "runner", NOW)


def test_one_key_cannot_have_two_roles_nor_be_the_root_as_well() -> None:
    document = GOOD.documents[0].document
    named = document.keys[0]
    for keys in (
        (named, named.model_copy(update={"role": "release"})),
        (named.model_copy(update={"key": document.root}),),
    ):
        with pytest.raises(ValueError, match="twice"):
            TrustDocument.model_validate({**document.model_dump(), "keys": [each.model_dump() for each in keys]})


def test_a_key_that_is_named_no_more_counts_no_more() -> None:
    authority = Authority()
    stolen = authority.manifest_key
    authority.trust.key(stolen, "manifest", NOW)
    authority.exchange("manifest")
    with pytest.raises(NotTrusted, match="does not name"):
        authority.trust.key(stolen, "manifest", NOW)
    authority.trust.key(authority.manifest_key, "manifest", NOW)


# -- the root ----------------------------------------------------------------------------------------------------------


def test_who_pinned_the_first_root_follows_through_two_exchanges_and_the_old_roots_count_no_more() -> None:
    authority = Authority()
    pinned, first_root = authority.public_root, authority.root
    believed = authority.trust
    authority.exchange_root()
    second_root = authority.root
    authority.issue()
    authority.exchange_root()
    authority.issue()
    assert len(authority.chain.documents) == 3
    late = begin(pinned, authority.chain)
    assert late == believed.follow(authority.chain)
    assert late.root == authority.public_root
    for old in (first_root, second_root):
        forged = trust.sign(authority.document().model_copy(update={"root": sealing.public_signing_key(old)}), old)
        with pytest.raises(NotTrusted, match="must be signed by"):
            late.follow(chain(forged))


def test_a_host_that_enrols_after_an_exchange_begins_with_the_root_of_then() -> None:
    authority = Authority()
    authority.exchange_root()
    authority.issue()
    assert begin(authority.public_root, authority.chain).document.version == 3


def test_a_new_root_needs_both_signatures() -> None:
    authority = Authority()
    old, new = authority.root, new_key()
    document = authority.document().model_copy(update={"root": sealing.public_signing_key(new)})
    for signers in ((old,), (new,), (new_key(), new)):
        with pytest.raises(NotTrusted, match="must be signed by"):
            authority.trust.follow(chain(trust.sign(document, *signers)))
    assert authority.trust.follow(chain(trust.sign(document, old, new))).root == sealing.public_signing_key(new)


def test_a_gap_in_the_chain_of_roots_is_refused() -> None:
    authority = Authority()
    believed = authority.trust
    authority.exchange_root()
    authority.exchange_root()
    with pytest.raises(NotTrusted, match="must be signed by"):
        believed.follow(chain(authority.documents[-1]))


# -- releases ----------------------------------------------------------------------------------------------------------


def stated(authority: Authority, version: str, *, digest: str = "", minimum: str | None = None) -> SignedRelease:
    digest = digest or hashlib.sha256(version.encode()).hexdigest()
    return authority.state("runner", version=version, digest=digest, size=1, minimum=minimum)


def test_a_release_is_accepted_in_its_time_and_for_its_kind() -> None:
    signed = GOOD.state("runner", version="1.0", digest=DIGEST, size=1, ends=2000)
    assert GOOD.trust.release(signed, "runner", 1999).digest == DIGEST
    with pytest.raises(NotTrusted, match="expired"):
        GOOD.trust.release(signed, "runner", 2000)
    with pytest.raises(NotTrusted, match="in the place of one of the agent"):
        GOOD.trust.release(signed, "agent", 1999)
    with pytest.raises(NotTrusted, match="does not name"):
        GOOD.trust.release(stated(Authority(), "1.0"), "runner", 1999)


@pytest.mark.parametrize("field", ["version", "digest", "size", "python", "minimum", "issued_at", "expires_at"])
def test_a_release_with_another_field_is_refused(field: str) -> None:
    signed = stated(GOOD, "1.5", minimum="1.4")
    other: dict[str, Any] = {
        "version": "1.6", "digest": "cd" * 32, "size": 2, "python": "3.12", "minimum": "1.3", "issued_at": 5, "expires_at": 9,
    }  # fmt: skip
    bent = signed.model_copy(update={"release": signed.release.model_copy(update={field: other[field]})})
    with pytest.raises(Tampered):
        GOOD.trust.release(bent, "runner", 7.0)


def test_once_a_newer_release_was_seen_older_ones_are_refused_down_to_the_minimum_that_it_names() -> None:
    believed = GOOD.trust.saw(stated(GOOD, "1.10", minimum="1.9"))
    believed.release(stated(GOOD, "1.9"), "runner", NOW)
    believed.release(stated(GOOD, "2.0"), "runner", NOW)
    with pytest.raises(NotTrusted, match=r"older than 1\.9"):
        believed.release(stated(GOOD, "1.8.7"), "runner", NOW)
    assert believed.saw(stated(GOOD, "1.9")) == believed, "what is older is not remembered"
    strict = GOOD.trust.saw(stated(GOOD, "1.10"))
    with pytest.raises(NotTrusted, match="older"):
        strict.release(stated(GOOD, "1.9"), "runner", NOW)


def test_a_release_never_changes_and_may_be_stated_anew() -> None:
    believed = GOOD.trust.saw(stated(GOOD, "1.0"))
    with pytest.raises(NotTrusted, match="never changes"):
        believed.release(stated(GOOD, "1.0.0", digest=DIGEST), "runner", NOW)
    again = stated(GOOD, "1.0", minimum="0.9")
    believed.release(again, "runner", NOW)
    assert believed.saw(again).runner == again


def test_what_a_stolen_release_key_said_is_forgotten_with_the_key() -> None:
    authority = Authority()
    believed = authority.trust.saw(stated(authority, "999"))
    with pytest.raises(NotTrusted):
        believed.release(stated(authority, "1.0"), "runner", NOW)
    authority.exchange("release")
    believed = believed.follow(authority.chain)
    believed.release(stated(authority, "1.0"), "runner", NOW)
    assert believed.saw(stated(authority, "1.0")).runner == stated(authority, "1.0")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_versions_are_ordered_as_numbers_and_missing_ones_are_nought(one: list[int], other: list[int]) -> None:
    texts = [".".join(map(str, numbers)) for numbers in (one, other)]
    padded = [numbers + [0] * (6 - len(numbers)) for numbers in (one, other)]
    assert (order(texts[0]) < order(texts[1])) == (padded[0] < padded[1])
    assert (order(texts[0]) == order(texts[1])) == (padded[0] == padded[1])


def test_a_fingerprint_is_of_one_key_and_can_be_read_aloud() -> None:
    one, other = fingerprint(bytes(32)), fingerprint(bytes(31) + b"\1")
    assert one != other
    assert [len(group) for group in one.split("-")] == [4] * 8


def test_what_is_believed_survives_being_written_down() -> None:
    believed = GOOD.trust.saw(stated(GOOD, "1.0"))
    assert Trust.model_validate_json(canonical(believed)) == believed
