"""Those who sign for a platform, with all their private keys: root, manifest key, release key."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from labapex import sealing, trust
from labapex.executable import Runner
from labapex.protocol.canonical import canonical
from labapex.protocol.manifest import Manifest
from labapex.protocol.trust import (
    Kind,
    Release,
    Role,
    SignedRelease,
    SignedTrust,
    TrustChain,
    TrustDocument,
    TrustedKey,
    key_id,
)
from labapex.trust import Trust

BEGAN, ENDS = 0, 2_000_000_000


def new_key() -> bytes:
    return sealing.new_signing_keys()[0]


@dataclass
class Authority:
    """`documents` are what was signed so far; `named` are keys with their role and window."""

    root: bytes = field(default_factory=new_key)
    named: dict[bytes, tuple[Role, int, int]] = field(
        default_factory=lambda: {new_key(): ("manifest", BEGAN, ENDS), new_key(): ("release", BEGAN, ENDS)}
    )
    documents: list[SignedTrust] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.documents:
            self.issue()

    def private(self, role: Role) -> bytes:
        return [key for key, (named, *_) in self.named.items() if named == role][-1]

    @property
    def manifest_key(self) -> str:
        return key_id(sealing.public_signing_key(self.private("manifest")))

    @property
    def public_root(self) -> bytes:
        return sealing.public_signing_key(self.root)

    @property
    def trust(self) -> Trust:
        """What one believes who pinned the first root and read everything."""
        return trust.begin(self.documents[0].signatures[0].root, self.chain)

    @property
    def chain(self) -> TrustChain:
        exchanged = [signed for signed in self.documents[:-1] if len(signed.signatures) == 2]
        return TrustChain(documents=(*exchanged, self.documents[-1]))

    @property
    def shown(self) -> bytes:
        """What the platform answers to who asks."""
        return canonical(self.chain)

    def document(self, *, version: int | None = None, begins: int = BEGAN, ends: int = ENDS) -> TrustDocument:
        """The next one, not signed yet."""
        keys = tuple(
            TrustedKey(role=role, key=sealing.public_signing_key(private), not_before=since, not_after=until)
            for private, (role, since, until) in self.named.items()
        )
        last = self.documents[-1].document.version if self.documents else 0
        return TrustDocument(
            version=version or last + 1, root=self.public_root, issued_at=begins, expires_at=ends, keys=keys
        )

    def issue(self, *, version: int | None = None, begins: int = BEGAN, ends: int = ENDS) -> SignedTrust:
        signed = trust.sign(self.document(version=version, begins=begins, ends=ends), self.root)
        self.documents.append(signed)
        return signed

    def exchange_root(self) -> SignedTrust:
        old, self.root = self.root, new_key()
        signed = trust.sign(self.document(), old, self.root)
        self.documents.append(signed)
        return signed

    def exchange(self, role: Role, *, old_until: int | None = None) -> SignedTrust:
        """Another key for a role; the old one is revoked, or counts until then."""
        old = self.private(role)
        if old_until is None:
            del self.named[old]
        else:
            self.named[old] = (role, self.named[old][1], old_until)
        self.named[new_key()] = (role, BEGAN, ENDS)
        return self.issue()

    def other(self) -> Self:
        """The same keys and documents, to go another way from here."""
        return replace(self, named=dict(self.named), documents=list(self.documents))

    def sign(self, manifest: Manifest) -> bytes:
        return sealing.sign(self.private("manifest"), manifest)

    def release(self, runner: Runner, *, version: str = "1.0", minimum: str | None = None) -> SignedRelease:
        size = runner.bootloader_size + runner.archive_size
        return self.state("runner", version=version, digest=runner.digest, size=size, minimum=minimum)

    def state(
        self,
        kind: Kind,
        *,
        version: str,
        digest: str,
        size: int,
        minimum: str | None = None,
        python: str = "3.11",
        ends: int = ENDS,
    ) -> SignedRelease:
        release = Release(
            kind=kind,
            version=version,
            digest=digest,
            size=size,
            python=python,
            minimum=minimum or version,
            issued_at=BEGAN,
            expires_at=ends,
        )
        return trust.sign_release(release, self.private("release"))
