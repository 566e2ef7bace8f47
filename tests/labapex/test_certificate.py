"""A certificate is believed only as a whole: no part of it can be changed, moved or taken from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.labapex.certified import KEYS, LOG_KEY, MODEL, VERDICT_KEY, MemoryLog, a_bundle, a_statement

from labapex.certificate import (
    MAX_BUNDLE,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    CertificateBundle,
    CertifiedCost,
    CertifiedRule,
    Envelope,
    Owner,
    PlatformKeys,
    Predicate,
    Signature,
    check,
    check_weights,
    key_id,
    open_envelope,
    pae,
    seal,
    subjects,
)
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.verdict import Weight
from labapex.sealing import new_signing_keys, sign
from labapex.transparency import Inclusion

BUNDLE = a_bundle()
TEXT = BUNDLE.model_dump_json().encode()


def reread(data: bytes) -> CertificateBundle:
    return parse(CertificateBundle, data, limit=1 << 20)


def signed(payload: bytes, key: bytes = VERDICT_KEY, **changed: Any) -> Envelope:
    """Any bytes under the platform's own signature."""
    signature = {"keyid": key_id(KEYS.verdict), "sig": base64.b64encode(sign(key, pae(payload))).decode()} | changed
    return Envelope(payload=base64.b64encode(payload).decode(), signatures=(Signature.model_validate(signature),))


def test_a_certificate_holds_and_states_what_was_stated() -> None:
    certificate = check(reread(TEXT), KEYS)
    assert certificate.statement == a_statement()
    assert (certificate.index, certificate.head.size) == (2, 6)
    assert certificate.digest == hashlib.sha256(a_statement().payload()).hexdigest()


@given(st.integers(0, 8 * len(TEXT) - 1))
@settings(max_examples=600, deadline=None)
def test_a_flipped_bit_anywhere_in_the_file_is_refused(bit: int) -> None:
    bent = bytearray(TEXT)
    bent[bit // 8] ^= 1 << bit % 8
    with pytest.raises(MalformedInput):
        check(reread(bytes(bent)), KEYS)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_it_holds_wherever_in_the_log_it_stands(before: int, after: int, other: int) -> None:
    bundle = a_bundle(before, after)
    assert check(bundle, KEYS).index == before
    if other != before:
        moved = bundle.inclusion.model_copy(update={"index": other})
        with pytest.raises(Tampered):
            check(bundle.model_copy(update={"inclusion": moved}), KEYS)


def test_the_signed_bytes_are_those_of_dsse() -> None:
    """The example of the DSSE specification, with this payload type."""
    assert pae(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"
    payload = base64.b64decode(BUNDLE.envelope.payload)
    signature = base64.b64decode(BUNDLE.envelope.signatures[0].sig)
    by_hand = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    Ed25519PublicKey.from_public_bytes(KEYS.verdict).verify(signature, by_hand)


def test_the_statement_is_one_that_any_reader_of_in_toto_understands() -> None:
    statement = json.loads(base64.b64decode(BUNDLE.envelope.payload))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "urn:labapex:certificate:v1"
    whole = hashlib.sha256(bytes.fromhex(MODEL)).hexdigest()
    assert statement["subject"] == [
        {"name": "digits", "digest": {"sha256": whole}},
        {"name": "model.safetensors", "digest": {"sha256": MODEL}},
    ]


def test_a_models_digest_is_over_its_files_digests_in_order_of_name() -> None:
    one, two = "11" * 32, "22" * 32
    found = subjects("m", {"b": two, "a": one})
    assert [each.name for each in found] == ["m", "a", "b"]
    assert found[0].digest.sha256 == hashlib.sha256(bytes.fromhex(one + two)).hexdigest()


@pytest.mark.parametrize("key", ["verdict", "log"])
def test_another_platforms_keys_open_nothing(key: str) -> None:
    other = KEYS.model_copy(update={key: new_signing_keys()[1]})
    with pytest.raises(Tampered):
        check(BUNDLE, other)


def test_a_good_certificate_that_was_never_entered_is_refused() -> None:
    log = MemoryLog()
    log.fill(4)
    for index in range(4):
        with pytest.raises(Tampered):
            check(log.bundle(index, seal(a_statement(), VERDICT_KEY)), KEYS)


def test_a_log_of_another_key_proves_nothing() -> None:
    log = MemoryLog(log_key=VERDICT_KEY)
    index, envelope = log.enter(a_statement())
    with pytest.raises(Tampered, match="another log"):
        check(log.bundle(index, envelope), KEYS)
    check(log.bundle(index, envelope), log.keys)


def test_an_entry_is_no_certificate_without_the_platforms_signature() -> None:
    log = MemoryLog(verdict_key=LOG_KEY)
    index, envelope = log.enter(a_statement())
    with pytest.raises(Tampered, match="signature"):
        check(log.bundle(index, envelope), KEYS)


def spaced(statement: dict[str, Any]) -> bytes:
    return json.dumps(statement, indent=1).encode()


PLAIN = json.loads(a_statement().payload())
STRANGE = {
    "with spaces": spaced(PLAIN),
    "keys in another order": json.dumps(dict(reversed(PLAIN.items())), separators=(",", ":")).encode(),
    "a field twice": a_statement().payload()[:-1] + b',"predicateType":"urn:labapex:certificate:v1"}',
    "a field too many": canonical(PLAIN | {"extra": 1}),
    "another type": canonical(PLAIN | {"_type": "https://in-toto.io/Statement/v0.1"}),
    "another predicate": canonical(PLAIN | {"predicateType": "https://slsa.dev/provenance/v1"}),
    "no files": canonical(PLAIN | {"subject": PLAIN["subject"][:1]}),
    "files in another order": canonical(PLAIN | {"subject": [*PLAIN["subject"], PLAIN["subject"][1]]}),
    "another model": canonical(
        PLAIN | {"subject": [{"name": "m", "digest": {"sha256": "0" * 64}}, PLAIN["subject"][1]]}
    ),
    "no JSON": b"\xff\x00",
}


@pytest.mark.parametrize("payload", STRANGE.values(), ids=STRANGE.keys())
def test_a_signature_does_not_excuse_a_strange_statement(payload: bytes) -> None:
    with pytest.raises(MalformedInput):
        open_envelope(signed(payload), KEYS.verdict)


def test_what_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(MalformedInput, match="at most"):
        parse(CertificateBundle, TEXT + b" " * MAX_BUNDLE, limit=MAX_BUNDLE)
    with pytest.raises(MalformedInput):
        reread(TEXT.replace(b'"payload":"', b'"payload":"' + b"AAAA" * 100_000))


@pytest.mark.parametrize(
    "changed", [{"keyid": "0" * 16}, {"keyid": ""}, {"sig": "AA=="}, {"sig": "no base64"}, {"sig": ""}]
)
def test_a_signature_must_be_whole_and_name_its_key(changed: dict[str, str]) -> None:
    with pytest.raises(Tampered):
        open_envelope(signed(a_statement().payload(), **changed), KEYS.verdict)


def test_a_certificate_of_a_rejected_run_contradicts_itself() -> None:
    failed = CertifiedRule(rule="replay", result="fail", weight=Weight.DECIDES)
    with pytest.raises(Tampered, match="rejects"):
        open_envelope(seal(a_statement(rules=(failed,)), VERDICT_KEY), KEYS.verdict)
    informed = CertifiedRule(rule="vmo", result="fail", weight=Weight.INFORMS)
    open_envelope(seal(a_statement(rules=(informed,)), VERDICT_KEY), KEYS.verdict)


def test_base64_has_one_spelling_only() -> None:
    """Else one certificate could be entered under many digests."""
    payload = BUNDLE.envelope.payload
    for other in (payload + "\n", payload.rstrip("=") + "=" * 4, payload.replace("+", "-").replace("/", "_") + " "):
        envelope = BUNDLE.envelope.model_copy(update={"payload": other})
        with pytest.raises(Tampered):
            check(BUNDLE.model_copy(update={"envelope": envelope}), KEYS)


def test_only_the_certified_file_passes_as_the_model() -> None:
    check_weights(a_statement(), MODEL)
    with pytest.raises(Tampered, match="not the certified one"):
        check_weights(a_statement(), "0" * 64)
    with pytest.raises(Tampered):
        check_weights(a_statement(), a_statement().subject[0].digest.sha256)  # the model as a whole is no file


def test_keys_must_be_whole() -> None:
    with pytest.raises(MalformedInput):
        parse(PlatformKeys, json.dumps({"verdict": "AA==", "log": "AA=="}), limit=100)


# -- the document ------------------------------------------------------------------------------------------------------


def verified_by_hand(text: str, verdict_key: bytes, log_key: bytes) -> dict[str, Any]:
    """docs/certificates.md in plain Python: nothing of this project is used."""
    bundle = json.loads(text)
    envelope, note, proof = bundle["envelope"], bundle["checkpoint"], bundle["inclusion"]
    statement = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    encoded = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(statement), statement])
    Ed25519PublicKey.from_public_bytes(verdict_key).verify(base64.b64decode(envelope["signatures"][0]["sig"]), encoded)
    name, size, root = note.split("\n")[:3]
    signature = base64.b64decode(note.split("\n")[4].split(" ")[2])
    assert signature[:4] == hashlib.sha256(name.encode() + b"\n\x01" + log_key).digest()[:4]
    Ed25519PublicKey.from_public_bytes(log_key).verify(signature[4:], f"{name}\n{size}\n{root}\n".encode())
    # Every string of an envelope is ASCII without escapes: sorted keys and no spaces are RFC 8785 here.
    entry = json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()
    node = hashlib.sha256(b"\x00" + entry).digest()
    index, last = proof["index"], proof["size"] - 1
    assert proof["size"] == int(size)
    for each in map(bytes.fromhex, proof["hashes"]):
        assert last
        if index % 2 or index == last:
            node = hashlib.sha256(b"\x01" + each + node).digest()
            while index and not index % 2:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\x01" + node + each).digest()
        index, last = index >> 1, last >> 1
    assert (last, base64.b64encode(node).decode()) == (0, root)
    document: dict[str, Any] = json.loads(statement)
    return document


def test_another_implementation_verifies_it_by_the_document_alone() -> None:
    for before, after in ((0, 0), (2, 3), (7, 0), (0, 9)):
        text = a_bundle(before, after).model_dump_json()
        assert verified_by_hand(text, KEYS.verdict, KEYS.log)["subject"][1]["digest"]["sha256"] == MODEL


def test_the_document_names_every_field() -> None:
    document = (Path(__file__).parents[2] / "docs" / "certificates.md").read_text()
    for model in (CertificateBundle, Envelope, Predicate, Owner, CertifiedRule, CertifiedCost, Inclusion):
        for name in model.model_fields:
            assert f"`{name}`" in document or f'"{name}"' in document, f"{model.__name__}.{name} is not documented"
    for constant in (PAYLOAD_TYPE, STATEMENT_TYPE, PREDICATE_TYPE):
        assert constant in document
