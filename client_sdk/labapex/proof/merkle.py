"""Merkle trees as in RFC 6962, section 2.1: one 32-byte root commits to a list, and short proofs speak about it.

Leaves and inner nodes are hashed under different prefixes, so that no inner node can be passed off as a leaf. A tree of
n leaves splits at the largest power of two below n, so that a list's tree is made of the full trees of its beginning.
Verification follows RFC 9162, sections 2.1.3.2 and 2.1.4.2. Bytes in, bytes out; what does not hold raises `Tampered`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from labapex.errors import Tampered

HASH_BYTES = 32


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 | data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 | left | right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """The root over the leaves' data, in one pass with O(log n) memory. SHA-256 of nothing for no leaf."""
    return root_of_hashes(map(leaf_hash, leaves))


def root_of_hashes(hashes: Iterable[bytes]) -> bytes:
    """The root over leaf hashes that were computed already."""
    peaks: list[bytes] = []  # roots of full subtrees, largest first
    for width, node in enumerate(hashes, start=1):
        while not width % 2:  # two full subtrees of one size become one
            node, width = node_hash(peaks.pop(), node), width // 2
        peaks.append(node)
    if not peaks:
        return hashlib.sha256(b"").digest()
    top = peaks.pop()
    while peaks:
        top = node_hash(peaks.pop(), top)
    return top


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path that shows `leaves[index]` under the root over all leaves. Raises `IndexError`."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    return audit_path([leaf_hash(leaf) for leaf in leaves], index)


def audit_path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The same from leaf hashes that were computed already."""
    if len(hashes) == 1:
        return []
    split = _split(len(hashes))
    if index < split:
        return [*audit_path(hashes[:split], index), root_of_hashes(hashes[split:])]
    return [*audit_path(hashes[split:], index - split), root_of_hashes(hashes[:split])]


def path_length(index: int, size: int) -> int:
    """How many hashes the audit path of leaf `index` of `size` has."""
    length = 0
    while size > 1:
        split = _split(size)
        index, size = (index, split) if index < split else (index - split, size - split)
        length += 1
    return length


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if `leaf` is number `index` of the `size` leaves under `root`; else raise `Tampered`."""
    if not 0 <= index < size:
        raise Tampered(f"leaf {index} cannot be among {size}")
    node, position, last = leaf_hash(leaf), index, size - 1
    for step in proof:
        if last == 0:
            raise Tampered("the inclusion proof is too long")
        if position % 2 or position == last:
            node = node_hash(step, node)
            while not position % 2 and position:  # a right border node had no sibling on these levels
                position, last = position // 2, last // 2
        else:
            node = node_hash(node, step)
        position, last = position // 2, last // 2
    if last or not hmac.compare_digest(node, root):
        raise Tampered(f"leaf {index} is not under this root")


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """The proof that the tree of the first `size` leaves grew into that of all. Raises `IndexError`."""
    if not 0 < size <= len(leaves):
        raise IndexError(f"a prefix of {size} of {len(leaves)} leaves")
    return _subproof([leaf_hash(leaf) for leaf in leaves], size, whole=True)


def verify_consistency(
    *, old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> None:
    """Return if the tree of `old_size` leaves grew into that of `new_size` by appending only; else raise `Tampered`."""
    if not 0 < old_size <= new_size:
        raise Tampered(f"a tree of {old_size} leaves cannot have grown into one of {new_size}")
    if old_size == new_size:
        if proof or not hmac.compare_digest(old_root, new_root):
            raise Tampered("two trees of one size must have one root and an empty proof")
        return
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]  # a power of two is a node of the new tree
    if not path:
        raise Tampered("the consistency proof is too short")
    position, last = old_size - 1, new_size - 1
    while position % 2:
        position, last = position // 2, last // 2
    old = new = path[0]
    for step in path[1:]:
        if last == 0:
            raise Tampered("the consistency proof is too long")
        if position % 2 or position == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while not position % 2 and position:
                position, last = position // 2, last // 2
        else:
            new = node_hash(new, step)
        position, last = position // 2, last // 2
    if last or not (hmac.compare_digest(old, old_root) and hmac.compare_digest(new, new_root)):
        raise Tampered("the newer tree does not begin with the older one")


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def _subproof(hashes: Sequence[bytes], size: int, *, whole: bool) -> list[bytes]:
    if size == len(hashes):
        return [] if whole else [root_of_hashes(hashes)]
    split = _split(len(hashes))
    if size <= split:
        return [*_subproof(hashes[:split], size, whole=whole), root_of_hashes(hashes[split:])]
    return [*_subproof(hashes[split:], size - split, whole=False), root_of_hashes(hashes[:split])]
