"""Keys that no server needs: PEM files under a passphrase, written outside the platform's home, to be kept elsewhere."""

from __future__ import annotations

import getpass
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from django.conf import settings

from labapex.errors import UsageError

SHORTEST_PASSPHRASE = 20
"""Characters. PKCS#8 as it is written here stretches a passphrase by 2,048 rounds of PBKDF2 only: length has to do it."""
MAX_PEM = 64 << 10


def make(path: Path, passphrase: str) -> bytes:
    """A new Ed25519 key in a new file; its public half. Raises `UsageError`."""
    home: Path = settings.LABAPEX.home
    if path.absolute().is_relative_to(home.absolute()):
        raise UsageError(f"{path} lies in the platform's home; write this key to a medium that you can take away")
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise UsageError(f"a passphrase needs {SHORTEST_PASSPHRASE} characters at least: take a few words")
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode()))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return key.public_key().public_bytes_raw()


def load(path: Path, passphrase_file: Path | None) -> bytes:
    """The private key in a PEM file, or in one of 32 bytes as they lie in `home/keys`. Raises `UsageError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) == 32:
        return data
    try:
        key = load_pem_private_key(data, passphrase(passphrase_file, f"Passphrase of {path}: ").encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{path} does not open: another passphrase, or no private key under one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds no Ed25519 key; make one: manage.py trust root FILE")
    return key.private_bytes_raw()


def passphrase(file: Path | None, prompt: str) -> str:
    """From the first line of a file that only its owner can read, else typed."""
    if file is None:
        return getpass.getpass(prompt)
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise UsageError(f"{file} can be read by others; run: chmod 600 {file}")
    lines = file.read_text().splitlines()
    return lines[0] if lines else ""


def new_passphrase(file: Path | None) -> str:
    chosen = passphrase(file, "New passphrase: ")
    if file is None and getpass.getpass("Once more: ") != chosen:
        raise UsageError("the two passphrases differ")
    return chosen
