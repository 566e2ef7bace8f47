"""Secrets that the platform gives out: what it keeps of them opens nothing."""

from __future__ import annotations

import hashlib


def digest(secret: str) -> str:
    """SHA-256 in hexadecimal digits. Drawn at random, and long or for some minutes, they need no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()
