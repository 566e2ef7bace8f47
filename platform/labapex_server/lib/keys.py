"""The platform's own keys: files of mode 0600 under `home/keys`, made at the first run and never in the database.

A copy of the database alone opens nothing: what is secret in it is wrapped under a key that lies here. Which of the keys
that sign for workers count is not decided here: the trust document says so (`lib.trust`).
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from labapex.errors import Tampered
from labapex.protocol.trust import Role
from labapex.protocol.trust import key_id as key_id
from labapex.sealing import new_key, new_signing_keys, public_signing_key
from labapex_server.lib.files import secret_file

_cache: dict[Path, bytes] = {}
_NONCE = 12


def new(role: Role) -> bytes:
    """Make another private Ed25519 key that signs in this role once a trust document names it; its public half."""
    private, public = new_signing_keys()
    secret_file(_folder() / f"{role}-{key_id(public)}", lambda: private)
    return public


def held(role: Role) -> dict[str, bytes]:
    """The private keys of a role that lie here, by id."""
    found = {}
    for path in sorted(_folder().glob(f"{role}-*")):
        private = path.read_bytes()
        found[key_id(public_signing_key(private))] = private
    return found


def local_root() -> bytes | None:
    """The private root key, where it lies on this machine: on a platform that set itself up."""
    try:
        return (_folder() / "root").read_bytes()
    except FileNotFoundError:
        return None


def make_local_root() -> bytes:
    return secret_file(_folder() / "root", lambda: new_signing_keys()[0])


def verdict_key() -> bytes:
    """Private Ed25519 key that signs verdicts and certificates."""
    return _key("verdict", signing=True)


def log_key() -> bytes:
    """Private Ed25519 key that signs the heads of the transparency log, and nothing else."""
    return _key("log", signing=True)


def verdict_public_key() -> bytes:
    return public_signing_key(verdict_key())


def log_public_key() -> bytes:
    return public_signing_key(log_key())


def pseudonym(of: str) -> str:
    """A lasting name that says nothing about whose it is without the key here: 32 hexadecimal digits."""
    return hmac.new(_key("pseudonym"), of.encode(), hashlib.sha256).hexdigest()[:32]


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


def forget() -> None:
    """Read the keys anew when they are needed: others lie here now."""
    _cache.clear()


def _folder() -> Path:
    folder: Path = settings.LABAPEX.private_folder("keys")
    return folder


def _key(name: str, *, signing: bool = False) -> bytes:
    path = settings.LABAPEX.home / "keys" / name
    if path not in _cache:
        _folder()
        _cache[path] = secret_file(path, lambda: new_signing_keys()[0] if signing else new_key())
    return _cache[path]
