"""Hash trees and audit paths (RFC 6962, section 2.1)."""

from __future__ import annotations

import hashlib


def entry_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def root(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, over entries that are hashed already."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256().digest()
    split = _split(len(hashes))
    return hashlib.sha256(b"\1" + root(hashes[:split]) + root(hashes[split:])).digest()


def climbed(node: bytes, place: int, size: int, path: list[bytes]) -> bytes:
    """The root that an audit path gives for entry `place` of `size`. The path is as long as `height` says."""
    if size == 1:
        return node
    split, *below = _split(size), *path[:-1]
    if place < split:
        return hashlib.sha256(b"\1" + climbed(node, place, split, below) + path[-1]).digest()
    return hashlib.sha256(b"\1" + path[-1] + climbed(node, place - split, size - split, below)).digest()


def height(place: int, size: int) -> int:
    if size == 1:
        return 0
    split = _split(size)
    return 1 + (height(place, split) if place < split else height(place - split, size - split))


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1
