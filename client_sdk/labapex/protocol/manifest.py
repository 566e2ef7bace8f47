"""What an executable is made of, and the signed statement over it.

    [bootloader ELF][section 0 .. n][manifest][signature][trailer][PyInstaller archive .. cookie]

The bootloader finds its archive from the end of the file, so whatever stands between costs no start-up time. Section 0 is
the encrypted `Index`; the others are the job's files, each sealed once at upload under a key of its own, which the
index holds. So a job's executable is a concatenation, and packaging never touches the data again.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, StringConstraints, model_validator

from labapex.protocol.canonical import Digest, Message
from labapex.protocol.contract import Contract, TorchBuild
from labapex.protocol.requirements import Lock
from labapex.protocol.spec import BundlePath
from labapex.protocol.trust import KeyId, SignedRelease

MAX_MANIFEST = 4 << 20
HexKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Section(Message):
    """One sealed stretch of the file."""

    digest: Digest  # of the sealed bytes
    size: int = Field(ge=0)  # sealed bytes


class SuppliedTorch(Message):
    """torch and what it runs with, for a host that has none: wheels that the platform hands out beside the executable."""

    build: TorchBuild  # what the host has once they are unpacked, as its executable will tell
    packages: Lock

    @model_validator(mode="after")
    def _holds_torch(self) -> Self:
        if not self.packages.supplies_torch:
            raise ValueError("torch is not among the packages that supply it")
        return self


class Manifest(Message):
    """What the platform signs (Ed25519 over its canonical JSON) for one lease and one worker."""

    format: Literal[1] = 1
    key: KeyId  # of the manifest key that signs this
    release: SignedRelease  # the runner: bootloader and archive, concatenated
    bootloader_size: int = Field(gt=0)
    archive_size: int = Field(gt=0)
    sections: tuple[Section, ...] = Field(min_length=1, max_length=8193)
    worker: UUID
    contract: Contract
    requirements: Lock = Lock()  # the contract's; the host gets these wheels from the platform, beside this file
    torch: SuppliedTorch | None = None  # None: the host has its own
    expires_at: int = Field(ge=0)  # Unix time

    @property
    def runner(self) -> str:
        """SHA-256 of bootloader and archive, concatenated."""
        return self.release.release.digest

    @model_validator(mode="after")
    def _holds_what_was_released(self) -> Self:
        if self.bootloader_size + self.archive_size != self.release.release.size:
            raise ValueError("bootloader and archive have other sizes than the released runner")
        return self


class IndexEntry(Message):
    """Where the plaintext of one section belongs, and the key that opens it."""

    path: BundlePath
    digest: Digest  # of the plaintext
    size: int = Field(ge=0)
    key: HexKey


class Index(Message):
    """Section 0, sealed under the job's content key: entry i describes section i + 1."""

    entries: tuple[IndexEntry, ...]


class ReleasedKeys(Message):
    """What `KeyRelease.sealed` holds."""

    content_key: Annotated[bytes, Field(min_length=32, max_length=32)]
    run_key: Annotated[bytes, Field(min_length=32, max_length=32)]
