"""The platform's own keys: files of mode 0600 under `home/keys`, made at the first run and never in the database.

A copy of the database alone opens nothing: what is secret in it is wrapped under a key that lies here.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from labapex.errors import Tampered
from labapex.sealing import new_key, new_signing_keys, public_signing_key
from labapex_server.lib.files import secret_file

_cache: dict[Path, bytes] = {}
_NONCE = 12


def manifest_key() -> bytes:
    """Private Ed25519 key that signs what a worker may run; agents pin its public half at enrolment."""
    return _key("manifest", signing=True)


def verdict_key() -> bytes:
    """Private Ed25519 key that signs verdicts and certificates."""
    return _key("verdict", signing=True)


def log_key() -> bytes:
    """Private Ed25519 key that signs the heads of the transparency log, and nothing else."""
    return _key("log", signing=True)


def manifest_public_key() -> bytes:
    return public_signing_key(manifest_key())


def verdict_public_key() -> bytes:
    return public_signing_key(verdict_key())


def log_public_key() -> bytes:
    return public_signing_key(log_key())


def pseudonym(of: str) -> str:
    """A lasting name that says nothing about whose it is without the key here: 32 hexadecimal digits."""
    return hmac.new(_key("pseudonym"), of.encode(), hashlib.sha256).hexdigest()[:32]


def key_id(public_key: bytes) -> str:
    """A short name of a public key: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def wrap(secret: bytes, purpose: str) -> bytes:
    """A secret as it may lie in the database. It opens only for the same purpose, so that rows cannot be swapped."""
    nonce = new_key()[:_NONCE]
    return nonce + AESGCM(_key("wrapping")).encrypt(nonce, secret, purpose.encode())


def unwrap(wrapped: bytes | memoryview, purpose: str) -> bytes:
    """The secret; raises `Tampered`."""
    data = bytes(wrapped)
    try:
        return AESGCM(_key("wrapping")).decrypt(data[:_NONCE], data[_NONCE:], purpose.encode())
    except (InvalidTag, ValueError):
        raise Tampered(
            f"a stored key ({purpose}) does not open: the database and {_folder()} do not belong together; restore both"
        ) from None


def _folder() -> Path:
    folder: Path = settings.LABAPEX.private_folder("keys")
    return folder


def _key(name: str, *, signing: bool = False) -> bytes:
    path = settings.LABAPEX.home / "keys" / name
    if path not in _cache:
        _folder()
        _cache[path] = secret_file(path, lambda: new_signing_keys()[0] if signing else new_key())
    return _cache[path]
