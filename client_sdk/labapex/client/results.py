"""What a judged job leaves: verdict, receipt, certificate, weights and proof, checked before a file gets its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
from pydantic import Field

from labapex import sealing
from labapex.certificate import (
    CertificateBundle,
    PlatformKeys,
    Revocation,
    RevocationStatus,
    check,
    check_revocation,
)
from labapex.client.asking import Asking
from labapex.errors import LabApexError, NotFound, Tampered, UsageError, VerificationRejected
from labapex.proof import folder, parcel
from labapex.proof.folder import Manifest, Proof
from labapex.protocol.canonical import Message
from labapex.protocol.canonical import digest as digest_of
from labapex.protocol.ruling import Ruling, SignedRuling
from labapex.protocol.verdict import Receipt, SignedVerdict, Verdict
from labapex.transparency import Checkpoint, Consistency, Head, check_growth, open_checkpoint

MAX_WEIGHTS = 1 << 40
MAX_PROOF = 1 << 42


class VerdictKey(Message):
    """The key that signs verdicts (Ed25519)."""

    key_id: str = Field(max_length=200)
    public_key: bytes = Field(min_length=32, max_length=32)


@dataclass(frozen=True)
class Pulled:
    """What `Client.pull` brought. `certificate` is None where the platform has none for the job."""

    weights: Path
    verdict: Path
    certificate: Path | None
    digest: str
    size: int  # bytes


def check_verdict(signed: SignedVerdict, public_key: bytes) -> Verdict:
    """The verdict, if the key signed it; raises `Tampered`."""
    sealing.verify(public_key, signed.verdict, signed.signature)
    return signed.verdict


def check_ruling(signed: SignedRuling, public_key: bytes) -> Ruling:
    """The ruling, if the key signed it; raises `Tampered`."""
    sealing.verify(public_key, signed.ruling, signed.signature)
    return signed.ruling


class Results(Asking):
    """What is asked of a job when it has ended, and what a verdict stands on."""

    def verdict(self, job: UUID) -> SignedVerdict:
        """The signed verdict, unchecked: see `check_verdict`. Raises `NotFinished` while there is none."""
        return self._ask(SignedVerdict, "GET", f"jobs/{job}/verdict/")

    def verdict_key(self) -> VerdictKey:
        """The platform's key for verdicts, as the platform itself states it; told to anyone."""
        return self._ask(VerdictKey, "GET", "keys/verdict/", anonymous=True)

    def checked_verdict(self, job: UUID, key: bytes | None = None) -> SignedVerdict:
        """The verdict on this very job, its signature checked against `key`, else against the platform's stated key."""
        signed = self.verdict(job)
        check_verdict(signed, key or self.verdict_key().public_key)
        if signed.verdict.job != job:
            raise Tampered(f"the platform sent the verdict of another job: {signed.verdict.job}")
        return signed

    def platform_keys(self) -> PlatformKeys:
        """The keys that certificates stand on, as the platform itself states them; told to anyone."""
        return self._ask(PlatformKeys, "GET", "keys/", anonymous=True)

    def certificate(self, job: UUID) -> CertificateBundle:
        """The certificate of a verified job, unchecked: see `labapex.certificate.check`."""
        return self._ask(CertificateBundle, "GET", f"jobs/{job}/certificate/")

    def check_log(self, seen: Checkpoint, log_key: bytes) -> Checkpoint:
        """The log's present head, after proof that the log only grew since one that was seen. Raises `Tampered`."""
        now = open_checkpoint(self._ask(Head, "GET", "transparency/head", anonymous=True).checkpoint, log_key)
        if now.size < seen.size:
            raise Tampered(f"the log had {seen.size} entries once and states {now.size} now: entries were taken out")
        sizes = {"first": str(seen.size), "second": str(now.size)}
        grown = self._ask(Consistency, "GET", "transparency/consistency", params=sizes, anonymous=True)
        check_growth(seen, now, grown)
        return now

    def revocation(self, certificate: str, keys: PlatformKeys) -> Revocation | None:
        """The entry of the log that takes a certificate back, checked; None where the platform says that there is none.

        Raises `Tampered`, and `NotFound` for a certificate of another platform."""
        path = f"transparency/revocations/{certificate}"
        return check_revocation(self._ask(RevocationStatus, "GET", path, anonymous=True), certificate, keys)

    def receipt(self, job: UUID) -> Receipt:
        return self._ask(Receipt, "GET", f"jobs/{job}/receipt/")

    def pull(self, job: UUID, destination: Path, key: bytes | None = None, *, log_key: bytes | None = None) -> Pulled:
        """Bring `model.safetensors`, `verdict.json` and `certificate.json` into a folder.

        The verdict's signature is checked first, then that the weights are those it names, and that the certificate is
        theirs; a file that is not as it should be never gets its name. Raises `VerificationRejected`, `NotFinished`, `Tampered`.
        """
        signed = self.checked_verdict(job, key)
        verdict = signed.verdict
        if verdict.verdict == "rejected":
            raise VerificationRejected(f"the job was rejected by the rule '{verdict.deciding_rule}': {verdict.reason}")
        if verdict.weights is None:
            raise NotFound("the verdict names no weights")
        certified = self._checked_certificate(signed, key, log_key)
        try:
            destination.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{destination} cannot be a folder: {error.strerror}") from None
        weights, document = destination / "model.safetensors", destination / "verdict.json"
        size = 0
        with _new_file(weights) as temporary:

            def receive(headers: httpx.Headers, chunks: Iterator[bytes]) -> None:
                nonlocal size
                size = _save(temporary, chunks, verdict.weights or "", headers.get("X-Labapex-Digest"))

            self._connection.download(f"/api/v1/jobs/{job}/weights/", receive)
        with _new_file(document) as temporary:
            temporary.write_text(signed.model_dump_json(indent=2) + "\n", encoding="utf-8")
        certificate = destination / "certificate.json" if certified else None
        if certified and certificate:
            with _new_file(certificate) as temporary:
                temporary.write_text(certified.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return Pulled(weights=weights, verdict=document, certificate=certificate, digest=verdict.weights, size=size)

    def proof(self, job: UUID, destination: Path, key: bytes | None = None) -> Manifest:
        """Bring the proof of a judged job into a folder that does not exist yet; see docs/proof-folder.md.

        Every digest is checked, and that it is the proof that the signed verdict speaks of. A folder that is not as it
        should be never gets its name. Raises `NotFinished`, `Tampered`, `MalformedInput`, `UsageError`.
        """
        signed = self.checked_verdict(job, key)
        if destination.exists():
            raise UsageError(f"{destination} exists already; name a folder that does not")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".labapex-")) / "proof"
        except OSError as error:
            raise UsageError(f"{destination.parent} cannot be written to: {error.strerror}") from None
        found: list[Proof] = []

        def receive(headers: httpx.Headers, chunks: Iterator[bytes]) -> None:
            parcel.unpack(chunks, draft, limit=MAX_PROOF)
            found.append(folder.read(draft))

        try:
            self._connection.download(f"/api/v1/jobs/{job}/proof/", receive)
            if found[-1].verdict != signed:
                raise Tampered("the platform sent the proof of another verdict than the one that it signed")
            draft.rename(destination)
        except OSError as error:
            raise LabApexError(f"{destination} cannot be written: {error.strerror}") from None
        finally:
            shutil.rmtree(draft.parent)
        return found[-1].manifest

    def _checked_certificate(
        self, signed: SignedVerdict, key: bytes | None, log_key: bytes | None
    ) -> CertificateBundle | None:
        """The certificate of this verdict; None where the platform has none. Raises `Tampered`."""
        verdict = signed.verdict
        try:
            found = self.certificate(verdict.job)
        except NotFound:
            return None
        stated = self.platform_keys() if key is None or log_key is None else None
        keys = PlatformKeys(
            verdict=key or (stated.verdict if stated else b""), log=log_key or (stated.log if stated else b"")
        )
        certified = check(found, keys).statement
        if (certified.predicate.job, certified.model) != (verdict.job, verdict.weights):
            raise Tampered("the platform sent the certificate of another job")
        if certified.predicate.verdict != digest_of(verdict):
            raise Tampered("the certificate was made from another verdict than the one that the platform sent")
        return found


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its name when all went well, and is deleted otherwise."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".labapex-")
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written to: {error.strerror}") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise LabApexError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _save(path: Path, chunks: Iterator[bytes], digest: str, stated: str | None) -> int:
    """Write what comes to a file, and raise `Tampered` unless it has the digest of the verdict."""
    state, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > MAX_WEIGHTS:
                raise Tampered(f"the weights are longer than {MAX_WEIGHTS} bytes")
            state.update(chunk)
            file.write(chunk)
    if state.hexdigest() != digest or stated not in (None, digest):
        raise Tampered("the weights are not those that the verdict names; nothing was kept")
    return size
