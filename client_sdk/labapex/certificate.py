"""Certificates: what a client shows to others to say "this model was trained, by me, and it was checked".

A certificate is an in-toto Statement v1 about the model's files, in a DSSE envelope signed by the platform, entered in
the public log (`labapex.transparency`). The bundle that `labapex pull` writes holds the envelope, the proof that the log
holds it, and the signed tree head: everything but the platform's two public keys, which its reader has to trust.
docs/certificates.md has each byte, and what a certificate does not prove. What does not hold raises `Tampered`.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field, StringConstraints

from labapex import sealing
from labapex.errors import Tampered
from labapex.protocol.canonical import Digest, Message, canonical, parse
from labapex.protocol.contract import Environment
from labapex.protocol.verdict import Origin, Weight
from labapex.transparency import MAX_CHECKPOINT, Checkpoint, Inclusion, check_inclusion, decode, open_checkpoint

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:labapex:certificate:v1"
REVOCATION_TYPE: Final = "urn:labapex:revocation:v1"
MAX_STATEMENT = 256 << 10
MAX_BUNDLE = 512 << 10
WEIGHTS = "model.safetensors"
"""The name of the one file that a certified model consists of."""

Pseudonym = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Sha256(Message):
    sha256: Digest


class Subject(Message):
    name: Name
    digest: Sha256


class Owner(Message):
    """Who asked for the training and paid for it. `id` is a pseudonym, the same in each certificate of that account."""

    id: Pseudonym
    name: str | None = Field(default=None, max_length=80)  # only if they chose to publish one


class CertifiedRule(Message):
    rule: Name
    result: Literal["pass", "fail", "not-applicable"]
    weight: Weight


class CertifiedCost(Message):
    """`paid` in micro-credits, times in seconds, sizes in bytes."""

    paid: int = Field(ge=0)
    train_seconds: float = Field(ge=0)
    verify_seconds: float = Field(ge=0)
    opened_bytes: int = Field(ge=0)
    all_checkpoint_bytes: int = Field(ge=0)


class Predicate(Message):
    """What the platform states about the training of the subject."""

    client: Owner
    job: UUID
    lease: UUID
    contract: Digest  # of the terms, the seed among them
    code: Digest
    data: Digest
    proof_root: Digest  # Merkle root over the committed states
    verdict: Digest  # of the verdict's canonical JSON: ask the client for the verdict itself
    rules: tuple[CertifiedRule, ...] = Field(max_length=100)
    detection: str = Field(max_length=2000)
    epochs: int = Field(ge=1)
    iterations: int = Field(ge=1)  # in all
    worker_environment: Environment | None
    verifier_environment: Environment | None
    cost: CertifiedCost
    contracted_at: float  # when code, data and seed were fixed: before that, nobody could know the result
    issued_at: float
    parents: tuple[Digest, ...] = Field(default=(), max_length=64)  # certificates of what it started from
    origin: Origin


class Statement(Message):
    """An in-toto Statement v1. The first subject is the model as a whole, the others are its files by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default=STATEMENT_TYPE, alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=2, max_length=1000)
    predicateType: Literal["urn:labapex:certificate:v1"] = PREDICATE_TYPE
    predicate: Predicate

    @property
    def model(self) -> str:
        """SHA-256 of the weights' file, by which people look a certificate up."""
        return self.subject[1].digest.sha256

    def payload(self) -> bytes:
        """The signed bytes."""
        return canonical(self.model_dump(mode="json", by_alias=True))


class Withdrawal(Message):
    """Why a certificate holds no more: a dispute was ruled against the job."""

    certificate: Digest
    job: UUID
    dispute: UUID
    ruling: Digest  # of the ruling's canonical JSON: ask a party of the dispute for the ruling itself
    reason: str = Field(max_length=4000)
    issued_at: float


class Revocation(Message):
    """An in-toto Statement v1 about the same model, by which the platform takes its certificate back."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default=STATEMENT_TYPE, alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=2, max_length=1000)
    predicateType: Literal["urn:labapex:revocation:v1"] = REVOCATION_TYPE
    predicate: Withdrawal

    def payload(self) -> bytes:
        """The signed bytes."""
        return canonical(self.model_dump(mode="json", by_alias=True))


class Signature(Message):
    keyid: str = Field(max_length=64)
    sig: str = Field(max_length=100)


class Envelope(Message):
    """A DSSE envelope with exactly one signature. Its canonical JSON is the log's entry."""

    payloadType: Literal["application/vnd.in-toto+json"] = PAYLOAD_TYPE
    payload: str = Field(max_length=MAX_STATEMENT * 4 // 3 + 4)
    signatures: tuple[Signature, ...] = Field(min_length=1, max_length=1)

    def body(self) -> bytes:
        """The signed statement's bytes, unchecked; raises `Tampered` where they are not base64."""
        return decode(self.payload)

    def entry(self) -> bytes:
        """The bytes that the log holds."""
        return canonical(self)


class CertificateBundle(Message):
    """`certificate.json`."""

    format: Literal[1] = 1
    envelope: Envelope
    inclusion: Inclusion
    checkpoint: str = Field(max_length=MAX_CHECKPOINT)


class RevocationStatus(Message):
    """What the log says of a certificate: nothing, or that it was revoked, with the proof under the log's present head."""

    certificate: Digest
    revoked: CertificateBundle | None  # of a `Revocation`


class PlatformKeys(Message):
    """The two keys that a certificate stands on (Ed25519, base64): of verdicts and certificates, and of the log."""

    verdict: bytes = Field(min_length=32, max_length=32)
    log: bytes = Field(min_length=32, max_length=32)


@dataclass(frozen=True)
class Certificate:
    """A certificate that was checked. `digest` names it; `index` is its place in the log of `head`."""

    statement: Statement
    digest: str
    index: int
    head: Checkpoint


def subjects(name: str, files: dict[str, str]) -> tuple[Subject, ...]:
    """The model and its files (name -> SHA-256) as subjects.

    As in OpenSSF model signing, the model's own digest is SHA-256 over the raw digests of its files in order of name."""
    ordered = tuple(Subject(name=file, digest=Sha256(sha256=files[file])) for file in sorted(files))
    whole = hashlib.sha256(b"".join(bytes.fromhex(each.digest.sha256) for each in ordered)).hexdigest()
    return (Subject(name=name, digest=Sha256(sha256=whole)), *ordered)


def pae(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: "DSSEv1", then type and body, each with its length in bytes before it."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def key_id(public_key: bytes) -> str:
    """The first 16 hexadecimal digits of a key's SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def certificate_digest(payload: bytes) -> str:
    """The name of a certificate: SHA-256 of its signed statement."""
    return hashlib.sha256(payload).hexdigest()


def seal(statement: Statement | Revocation, private_key: bytes) -> Envelope:
    """Sign a statement."""
    payload = statement.payload()
    signature = Signature(
        keyid=key_id(sealing.public_signing_key(private_key)),
        sig=base64.b64encode(sealing.sign(private_key, pae(payload))).decode(),
    )
    return Envelope(payload=base64.b64encode(payload).decode(), signatures=(signature,))


def open_envelope(envelope: Envelope, public_key: bytes) -> Statement:
    """The statement of an envelope that this key signed and that is laid out as it must be; raises `Tampered`."""
    payload = _signed(envelope, public_key)
    statement = parse(Statement, payload, limit=MAX_STATEMENT)
    if statement.payload() != payload:
        raise Tampered("the certificate is not in canonical JSON (RFC 8785)")
    files = {each.name: each.digest.sha256 for each in statement.subject[1:]}
    if subjects(statement.subject[0].name, files) != statement.subject:
        raise Tampered("the model's digest is not that of its files in order of name")
    if any(each.weight is Weight.DECIDES and each.result == "fail" for each in statement.predicate.rules):
        raise Tampered("the certificate itself names a rule that rejects")
    return statement


def _signed(envelope: Envelope, public_key: bytes) -> bytes:
    """The payload, if this key signed it; raises `Tampered`."""
    payload, signature = envelope.body(), envelope.signatures[0]
    sealing.verify(public_key, pae(payload), decode(signature.sig))
    if signature.keyid != key_id(public_key):
        raise Tampered("the certificate names another key than the one that signed it")
    return payload


def check_revocation(status: RevocationStatus, certificate: str, keys: PlatformKeys) -> Revocation | None:
    """The revocation of this certificate, signed and in the log; None where the platform states that there is none.

    Raises `Tampered`. That there is none is the platform's word alone, until somebody reads the log's entries."""
    if status.certificate != certificate:
        raise Tampered("the platform answered for another certificate than the one that was asked for")
    if status.revoked is None:
        return None
    payload = _signed(status.revoked.envelope, keys.verdict)
    revocation = parse(Revocation, payload, limit=MAX_STATEMENT)
    if revocation.payload() != payload or revocation.predicate.certificate != certificate:
        raise Tampered("the revocation is not one of this certificate in canonical JSON (RFC 8785)")
    head = open_checkpoint(status.revoked.checkpoint, keys.log)
    check_inclusion(status.revoked.envelope.entry(), status.revoked.inclusion, head)
    return revocation


def check(bundle: CertificateBundle, keys: PlatformKeys) -> Certificate:
    """The certificate of a bundle: signed by the platform, and in the log of a head that the log signed.

    Nothing is asked of anyone. Raises `Tampered`."""
    statement = open_envelope(bundle.envelope, keys.verdict)
    head = open_checkpoint(bundle.checkpoint, keys.log)
    check_inclusion(bundle.envelope.entry(), bundle.inclusion, head)
    return Certificate(statement, certificate_digest(statement.payload()), bundle.inclusion.index, head)


def check_weights(statement: Statement, file_digest: str) -> None:
    """Return if a file with this SHA-256 is among the certified ones; raises `Tampered`."""
    if all(each.digest.sha256 != file_digest for each in statement.subject[1:]):
        raise Tampered(
            f"this file is not the certified one: its digest is {file_digest}, certified is {statement.model}"
        )
