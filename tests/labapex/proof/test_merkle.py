"""Merkle trees against a naive reference, the vectors of Certificate Transparency, and bad proofs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex.errors import Tampered
from labapex.proof import merkle

# The inputs and roots of the reference implementation of RFC 6962 (google/certificate-transparency, merkletree tests).
INPUTS = [bytes.fromhex(h) for h in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

leaves = st.lists(st.binary(max_size=3), min_size=1, max_size=40)


def naive_root(items: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not items:
        return hashlib.sha256(b"").digest()
    if len(items) == 1:
        return hashlib.sha256(b"\x00" + items[0]).digest()
    k = 1
    while 2 * k < len(items):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(items[:k]) + naive_root(items[k:])).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert merkle.root(INPUTS[:size]).hex() == ROOTS[size - 1]


@given(st.lists(st.binary(max_size=3), max_size=70))
def test_the_root_is_the_definition_s(items: list[bytes]) -> None:
    assert merkle.root(items) == naive_root(items)


@given(leaves, st.data())
def test_every_leaf_is_proven_and_nothing_else_is(items: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(items) - 1))
    proof, root = merkle.inclusion_proof(items, index), merkle.root(items)
    merkle.verify_inclusion(items[index], index=index, size=len(items), proof=proof, root=root)
    for leaf, bent, top in [
        (items[index] + b"!", proof, root),
        (items[index], [*proof, bytes(32)], root),
        (items[index], proof, bytes(32)),
        *([(items[index], proof[:-1], root), (items[index], [bytes(32), *proof[1:]], root)] if proof else []),
    ]:
        with pytest.raises(Tampered):
            merkle.verify_inclusion(leaf, index=index, size=len(items), proof=bent, root=top)
    with pytest.raises(Tampered):
        merkle.verify_inclusion(items[index], index=len(items), size=len(items), proof=proof, root=root)


@given(st.integers(2, 40), st.data())
def test_a_leaf_is_not_proven_in_another_place(size: int, data: st.DataObject) -> None:
    items = [bytes([i]) for i in range(size)]
    index, other = data.draw(st.permutations(range(size)))[:2]
    with pytest.raises(Tampered):
        merkle.verify_inclusion(
            items[index], index=other, size=size, proof=merkle.inclusion_proof(items, index), root=merkle.root(items)
        )


def test_an_inner_node_does_not_pass_for_a_leaf() -> None:
    a, b = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    with pytest.raises(Tampered):
        merkle.verify_inclusion(a + b, index=0, size=1, proof=[], root=merkle.root([b"a", b"b"]))


@given(leaves, st.data())
def test_a_prefix_is_proven_and_nothing_else_is(items: list[bytes], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(items)))
    proof = merkle.consistency_proof(items, size)
    old, new = merkle.root(items[:size]), merkle.root(items)
    merkle.verify_consistency(old_size=size, new_size=len(items), proof=proof, old_root=old, new_root=new)
    for bent, before, after in [
        ([*proof, bytes(32)], old, new),
        (proof, bytes(32), new),
        (proof, old, bytes(32)),
        *([(proof[:-1], old, new), ([bytes(32), *proof[1:]], old, new)] if proof else []),
    ]:
        with pytest.raises(Tampered):
            merkle.verify_consistency(old_size=size, new_size=len(items), proof=bent, old_root=before, new_root=after)


@given(leaves)
@settings(max_examples=30)
def test_a_tree_cannot_shrink_or_grow_from_nothing(items: list[bytes]) -> None:
    root = merkle.root(items)
    for old, new in ((0, len(items)), (len(items) + 1, len(items))):
        with pytest.raises(Tampered):
            merkle.verify_consistency(old_size=old, new_size=new, proof=[], old_root=root, new_root=root)
        with pytest.raises(IndexError):
            merkle.consistency_proof(items, old)
    with pytest.raises(IndexError):
        merkle.inclusion_proof(items, len(items))


@given(size=st.integers(1, 300), data=st.data())
def test_the_length_of_an_audit_path_is_known_beforehand(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    hashes = [merkle.leaf_hash(bytes([n % 256])) for n in range(size)]
    assert merkle.path_length(index, size) == len(merkle.audit_path(hashes, index))
