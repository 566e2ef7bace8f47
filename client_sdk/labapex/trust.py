"""What one who pinned a root key believes: from whom an executable may come, and which programs may be in it.

Pure: documents and the time come in, a new belief or an error comes out. Nothing is believed for what it says of itself:

* a trust document counts if the root that was pinned signed it, or a root to which a chain of documents leads from there,
  each signed by its predecessor AND by itself;
* never one that is older than the newest that was seen, nor another one of the same version;
* a key counts in its own role, in its own time, and while the document that names it has not expired;
* a release counts if a release key signed it, in its time, and it is not older than what the newest one allows.

Learning and judging are apart: what a document says of versions is remembered whatever time it is, so that a clock that
was set back cannot bring an older document back; whether it can be used now is asked at each use.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Self

from labapex import sealing
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import Message, canonical, parse
from labapex.protocol.trust import (
    MAX_CHAIN,
    Kind,
    Release,
    Role,
    RootSignature,
    SignedRelease,
    SignedTrust,
    TrustChain,
    TrustDocument,
    TrustedKey,
    key_id,
    order,
)

SKEW_SECONDS = 300
"""By how much a clock here may be behind the signer's. Only beginnings are forgiven, never ends."""


class NotTrusted(Tampered):
    """It was signed by a key that does not count: unknown, not yet, not any more, or not for this."""


class Trust(Message):
    """What is believed and remembered. `runner` and `agent` are the newest releases that were seen."""

    signed: SignedTrust
    runner: SignedRelease | None = None
    agent: SignedRelease | None = None

    @property
    def document(self) -> TrustDocument:
        return self.signed.document

    @property
    def root(self) -> bytes:
        return self.document.root

    def follow(self, chain: TrustChain) -> Self:
        """What is believed once `chain` was read. Raises `NotTrusted`; then everything stays as it was."""
        return self.model_copy(update={"signed": _walk(self.signed, self.root, chain)})

    def why_not(self, now: float) -> str | None:
        """Why the document cannot be used at `now` (Unix time); None where it can."""
        return _outside("the platform's trust document", self.document.issued_at, self.document.expires_at, now)

    def key(self, identity: str, role: Role, now: float) -> TrustedKey:
        """The key of that id, if it may sign in that role now. Raises `NotTrusted`."""
        if (why := self.why_not(now)) is not None:
            raise NotTrusted(why)
        named = {key.id: key for key in self.document.keys}.get(identity)
        if named is None:
            raise NotTrusted(f"signed by key {identity}, which the platform's trust document does not name")
        if named.role != role:
            raise NotTrusted(f"signed by key {identity}, which is a {named.role} key and may not sign a {role}")
        if (why := _outside(f"{role} key {identity}", named.not_before, named.not_after, now)) is not None:
            raise NotTrusted(why)
        return named

    def verify(self, document: Message | bytes, signature: bytes, *, key: str, role: Role, now: float) -> TrustedKey:
        """The key that signed it. Raises `Tampered`, or `NotTrusted` where the key does not count."""
        named = self.key(key, role, now)
        sealing.verify(named.key, document, signature)
        return named

    def release(self, signed: SignedRelease, kind: Kind, now: float) -> Release:
        """The release, if it may be run now. Raises `Tampered`, or `NotTrusted` for one that is late or too old."""
        self.verify(signed.release, signed.signature, key=signed.key, role="release", now=now)
        release = signed.release
        if release.kind != kind:
            raise NotTrusted(f"a release of the {release.kind} in the place of one of the {kind}")
        what = f"the release of {kind} {release.version}"
        if (why := _outside(what, release.issued_at, release.expires_at, now)) is not None:
            raise NotTrusted(why)
        newest = self._newest(kind)
        if newest is not None and order(release.version) < order(newest.minimum):
            raise NotTrusted(
                f"{kind} {release.version} is older than {newest.minimum}, the oldest that may still be run"
            )
        if newest is not None and order(release.version) == order(newest.version) and release.digest != newest.digest:
            raise NotTrusted(f"another {kind} {release.version} was released before; a release never changes")
        return release

    def saw(self, signed: SignedRelease) -> Self:
        """Remember a release that `release` accepted, if it is newer than the newest, or the same stated anew."""
        newest = self._newest(signed.release.kind)
        if newest is not None and order(signed.release.version) < order(newest.version):
            return self
        return self.model_copy(update={signed.release.kind: signed})

    def _newest(self, kind: Kind) -> Release | None:
        """The newest release that was seen. What a key said that has been revoked since is forgotten."""
        signed = self.runner if kind == "runner" else self.agent
        named = {key.id for key in self.document.keys if key.role == "release"}
        return signed.release if signed is not None and signed.key in named else None


def begin(root: bytes, chain: TrustChain) -> Trust:
    """The first belief of one who pinned `root`. Raises `NotTrusted` where the chain does not rest on it."""
    return Trust(signed=_walk(None, root, chain))


def _walk(held: SignedTrust | None, root: bytes, chain: TrustChain) -> SignedTrust:
    """The last document of the chain, each one from the held one on checked against the root before it."""
    versions = [signed.document.version for signed in chain.documents]
    if versions != sorted(set(versions)):
        raise NotTrusted("the platform's trust documents are not in the order of their versions")
    for signed in chain.documents:
        document = signed.document
        if held is not None and document.version <= held.document.version:
            if document.version == held.document.version and not _same(document, held.document):
                raise NotTrusted(f"two different trust documents have the version {document.version}")
            continue
        if held is None and all(each.root != root for each in signed.signatures):
            continue  # older than the root that was pinned
        _check(signed, root, first=held is None)
        held, root = signed, document.root
    if held is None:
        raise NotTrusted(f"no trust document here is signed by the root key {fingerprint(root)}")
    last = chain.documents[-1].document
    if last.version < held.document.version:
        raise NotTrusted(
            f"the platform shows version {last.version} of its trust document; version {held.document.version} was seen"
            " before, and older ones are refused"
        )
    return held


def _check(signed: SignedTrust, root: bytes, *, first: bool) -> None:
    """Signed by the root that counted before and, where it names another, by that as well; by nobody else.

    Who pins the new root by its `first` document does not know who counted before."""
    wanted = {root, signed.document.root}
    found = {each.root: each.signature for each in signed.signatures}
    good = set(found) >= wanted if first else set(found) == wanted
    if not good or len(found) != len(signed.signatures):
        names = " and ".join(sorted(fingerprint(each) for each in wanted))
        raise NotTrusted(
            f"version {signed.document.version} of the trust document must be signed by the root key {names}"
        )
    for key, signature in found.items():
        sealing.verify(key, signed.document, signature)


def _same(one: TrustDocument, other: TrustDocument) -> bool:
    return hmac.compare_digest(canonical(one), canonical(other))


def _outside(what: str, begins: int, ends: int, now: float) -> str | None:
    if not begins <= now + SKEW_SECONDS:  # a clock that says NaN is wrong
        return f"{what} is not valid yet; look at this host's clock"
    if not now < ends:
        return f"{what} has expired; the platform's operator has to sign a new one"
    return None


# -- bytes and names ---------------------------------------------------------------------------------------------------


def read_chain(data: bytes) -> TrustChain:
    """A chain as it is handed out. One spelling only, so that no byte of it is free. Raises `MalformedInput`."""
    chain = parse(TrustChain, data, limit=MAX_CHAIN)
    if canonical(chain) != data:
        raise MalformedInput("the trust documents are not in canonical form")
    return chain


def sign(document: TrustDocument, *roots: bytes) -> SignedTrust:
    """Signed by these private root keys: the one that counts, and the one that shall count where it is another."""
    signatures = (
        RootSignature(root=sealing.public_signing_key(root), signature=sealing.sign(root, document)) for root in roots
    )
    return SignedTrust(document=document, signatures=tuple(signatures))


def sign_release(release: Release, key: bytes) -> SignedRelease:
    """Signed by a private release key."""
    return SignedRelease(
        release=release, key=key_id(sealing.public_signing_key(key)), signature=sealing.sign(key, release)
    )


def fingerprint(root: bytes) -> str:
    """A public key as people compare it: the first 128 bits of its SHA-256, in groups of four hexadecimal digits."""
    digits = hashlib.sha256(root).hexdigest()[:32]
    return "-".join(digits[at : at + 4] for at in range(0, 32, 4))
