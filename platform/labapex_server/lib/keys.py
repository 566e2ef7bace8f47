"""The platform's own keys: files of mode 0600 under `home/keys`, made at the first run and never in the database.

A copy of the database alone opens nothing: what is secret in it is wrapped under a key that lies here. Which of the keys
that sign for workers count is not decided here: the trust document says so (`lib.trust`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from labapex.errors import Tampered
from labapex.protocol.trust import Role
from labapex.protocol.trust import key_id as key_id
from labapex.sealing import new_key, new_signing_keys, public_signing_key
from labapex_server.lib.files import fsync_folder, secret_file

_cache: dict[Path, tuple[tuple[int, int], bytes]] = {}  # with what tells one file from another
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
    return _key("verdict")


def log_key() -> bytes:
    """Private Ed25519 key that signs the heads of the transparency log, and nothing else."""
    return _key("log")


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
    secret, _ = _unwrap(bytes(wrapped), purpose)
    return secret


def rewrap(wrapped: bytes | memoryview, purpose: str) -> bytes | None:
    """The same secret under the present key; None where it is that already. Raises `Tampered`."""
    secret, present = _unwrap(bytes(wrapped), purpose)
    return None if present else wrap(secret, purpose)


def _unwrap(data: bytes, purpose: str) -> tuple[bytes, bool]:
    for number, key in enumerate((_key("wrapping"), *former("wrapping"))):
        try:
            return AESGCM(key).decrypt(data[:_NONCE], data[_NONCE:], purpose.encode()), number == 0
        except (InvalidTag, ValueError):
            continue
    raise Tampered(
        f"a stored key ({purpose}) does not open: the database and {_folder()} do not belong together; restore both"
    )


# -- another key in the place of one -----------------------------------------------------------------------------------

KEPT_SECRET = frozenset({"wrapping", "django"})
"""Of these the former one opens what it closed, until it is forgotten."""

KEPT_PUBLIC = frozenset({"verdict", "log"})
"""Of these the former one's public half is kept, for those who check what it signed."""


def rotate(name: str) -> Path:
    """Put a new key in the place of one, for all processes at once. Returns what is kept of the former."""
    folder = _folder()
    path, identity = folder / name, time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    old = path.read_bytes()
    kept = folder / f"{name}.{'former' if name in KEPT_SECRET else 'public'}-{identity}"
    secret_file(kept, lambda: old if name in KEPT_SECRET else public_signing_key(old))
    new = folder / f".{name}.new"
    new.unlink(missing_ok=True)
    secret_file(new, _MAKE[name])
    new.rename(path)
    fsync_folder(folder)
    return kept


def former(name: str) -> list[bytes]:
    """Secrets that were in a key's place before, the latest first."""
    return [path.read_bytes() for path in former_paths(name)]


def former_paths(name: str) -> list[Path]:
    return sorted(_folder().glob(f"{name}.former-*"), reverse=True)


def forget() -> None:
    """Read the keys anew when they are needed: others lie here now."""
    _cache.clear()


def _folder() -> Path:
    folder: Path = settings.LABAPEX.private_folder("keys")
    return folder


def _key(name: str) -> bytes:
    """The key in this place: read again where there is another one, as long-lived processes are not told of it."""
    path = settings.LABAPEX.home / "keys" / name
    try:
        found = path.stat()
    except FileNotFoundError:
        _folder()
        secret_file(path, _MAKE[name])
        found = path.stat()
    mark = (found.st_ino, found.st_mtime_ns)
    cached = _cache.get(path)
    if cached is None or cached[0] != mark:
        cached = _cache[path] = (mark, path.read_bytes())
    return cached[1]


def _new_signing_key() -> bytes:
    return new_signing_keys()[0]


_MAKE: dict[str, Callable[[], bytes]] = {
    "wrapping": new_key,
    "pseudonym": new_key,
    "verdict": _new_signing_key,
    "log": _new_signing_key,
    "django": lambda: os.urandom(48).hex().encode(),
}
