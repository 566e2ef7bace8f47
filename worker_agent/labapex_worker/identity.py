"""The worker's key: made on the host, never sent anywhere; whoever holds it is the worker."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from labapex import durable
from labapex.errors import UsageError
from labapex.protocol.api import EarningsRequest, earnings_bytes
from labapex.protocol.devices import Device
from labapex.protocol.frames import Hello, hello_bytes


class Identity:
    """An Ed25519 key in a file of 32 bytes that only its owner can read."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls, path: Path) -> Identity:
        """Make a new key; one that is there already is kept, so that a second try at enrolling is harmless."""
        if path.exists():
            return cls.load(path)
        key = Ed25519PrivateKey.generate()
        durable.write(path, key.private_bytes_raw())
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read the key; raises `UsageError` where it is missing, damaged or readable by others."""
        try:
            mode, raw = path.stat().st_mode, path.read_bytes()
        except FileNotFoundError:
            raise UsageError(f"no key in {path}; enrol first: labapex-worker enrol CODE --platform URL") from None
        if mode & 0o077:
            raise UsageError(f"{path} can be read by others; run: chmod 600 {path}")
        if len(raw) != 32:
            raise UsageError(f"{path} is damaged; remove it and enrol again")
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @property
    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def hello(
        self,
        worker: UUID,
        nonce: bytes,
        devices: tuple[Device, ...],
        leases: tuple[UUID, ...],
        *,
        lacks_torch: bool,
    ) -> Hello:
        """Answer to the platform's nonce."""
        signature = self._key.sign(hello_bytes(worker=worker, nonce=nonce))
        return Hello(worker=worker, signature=signature, devices=devices, leases=leases, lacks_torch=lacks_torch)

    def asks_for_earnings(self, worker: UUID, *, at: int, skip: int) -> EarningsRequest:
        """A signed request for the part of the list after `skip` entries; `at` in Unix seconds."""
        signature = self._key.sign(earnings_bytes(worker=worker, at=at, skip=skip))
        return EarningsRequest(worker=worker, at=at, skip=skip, signature=signature)
