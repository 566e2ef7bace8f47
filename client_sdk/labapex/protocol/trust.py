"""Whose signatures count: the trust document that an offline root key signs, and statements about releases.

    root (offline) ── signs ──> trust document ── names ──> manifest keys ── sign ──> manifests of executables
                                              └─ names ──> release keys  ── sign ──> statements of releases

All of it is canonical JSON and public. What follows from it stands in `labapex.trust`. Times are Unix seconds; a window
holds its beginning and not its end.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from labapex.protocol.canonical import Digest, Message

MAX_CHAIN = 256 << 10  # bytes of a `TrustChain`
MAX_RELEASE_BYTES = 64 << 30  # of what a statement names

PublicKey = Annotated[bytes, Field(min_length=32, max_length=32)]  # Ed25519
Signature = Annotated[bytes, Field(min_length=64, max_length=64)]  # Ed25519 over the document's canonical JSON
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Moment = Annotated[int, Field(ge=0, lt=2**40)]
Version = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,15})(\.(0|[1-9][0-9]{0,15})){0,5}$")]
"""Numbers and dots. Of two versions the one whose numbers are larger, from the left, is newer; missing ones are 0."""
Role = Literal["manifest", "release"]
Kind = Literal["runner", "agent"]


def key_id(public_key: bytes) -> str:
    """A short name of a public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


class TrustedKey(Message):
    """What one key may sign, and when that is believed."""

    role: Role
    key: PublicKey
    not_before: Moment
    not_after: Moment

    @property
    def id(self) -> str:
        return key_id(self.key)

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if not self.not_before < self.not_after:
            raise ValueError("a key's validity ends before it begins")
        return self


class TrustDocument(Message):
    """Which keys count. A key that is not named, or not any more, counts for nothing."""

    format: Literal["labapex-trust-1"] = "labapex-trust-1"
    version: int = Field(ge=1, lt=2**31)  # grows; a lower one than a reader knows is refused
    root: PublicKey  # whose signature counts on the next document
    issued_at: Moment
    expires_at: Moment
    keys: tuple[TrustedKey, ...] = Field(max_length=64)

    @model_validator(mode="after")
    def _is_unambiguous(self) -> Self:
        if not self.issued_at < self.expires_at:
            raise ValueError("the document ends before it was issued")
        named = [self.root, *(key.key for key in self.keys)]
        if len({key_id(key) for key in named}) != len(named):
            raise ValueError("a key stands twice in the document: each has one role")
        return self


class RootSignature(Message):
    root: PublicKey
    signature: Signature


class SignedTrust(Message):
    """A trust document; where it names a new root, the old one signs it as well as the new one."""

    document: TrustDocument
    signatures: tuple[RootSignature, ...] = Field(min_length=1, max_length=2)


class TrustChain(Message):
    """What a platform hands out: each document that exchanged the root, then today's; versions rise."""

    documents: tuple[SignedTrust, ...] = Field(min_length=1, max_length=33)


class Release(Message):
    """A program that is fit to be run: the runner inside executables, or the agent on hosts."""

    format: Literal["labapex-release-1"] = "labapex-release-1"
    kind: Kind
    version: Version
    digest: Digest  # runner: of bootloader and archive, concatenated; agent: of the wheel
    size: int = Field(gt=0, le=MAX_RELEASE_BYTES)  # bytes of the same
    python: Annotated[str, StringConstraints(pattern=r"^3\.[0-9]{1,3}$")]  # in the runner, or under the agent
    minimum: Version  # older ones of this kind are not to be run any more
    issued_at: Moment
    expires_at: Moment

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if not self.issued_at < self.expires_at:
            raise ValueError("the release expires before it was issued")
        if order(self.minimum) > order(self.version):
            raise ValueError("the release is older than the minimum that it names")
        return self


class SignedRelease(Message):
    release: Release
    key: KeyId  # of the release key that signed it
    signature: Signature


def order(version: str) -> tuple[int, ...]:
    """By what versions are compared."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
