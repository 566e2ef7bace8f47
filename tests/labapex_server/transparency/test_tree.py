"""The stored nodes give the very proofs of the definition, for every size and place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labapex.proof import merkle
from labapex_server.transparency import tree
from labapex_server.transparency.tree import Node, Run

sizes = st.integers(1, 200)


def store(leaves: list[bytes]) -> dict[Node, bytes]:
    """What a log of these leaves has stored, node by node."""
    stored: dict[Node, bytes] = {}
    for index, leaf in enumerate(leaves):
        node = stored[0, index] = merkle.leaf_hash(leaf)
        for level in tree.completed(index):
            node = merkle.node_hash(stored[level - 1, (index >> (level - 1)) - 1], node)
            stored[level, index >> level] = node
    return stored


def roots(runs: list[Run], stored: dict[Node, bytes]) -> list[bytes]:
    assert tree.needed(runs) <= stored.keys()
    return [tree.fold(run, stored.__getitem__) for run in runs]


def some(size: int) -> list[bytes]:
    return [b"%d" % i for i in range(size)]


@given(sizes)
def test_the_root_is_folded_from_full_nodes(size: int) -> None:
    assert tree.fold((0, size), store(some(size)).__getitem__) == merkle.root(some(size))


@given(sizes, st.data())
def test_inclusion_proofs_are_the_definitions(size: int, data: st.DataObject) -> None:
    leaves, index = some(size), data.draw(st.integers(0, size - 1))
    assert roots(tree.inclusion(index, size), store(leaves)) == merkle.inclusion_proof(leaves, index)


@given(sizes, st.data())
def test_consistency_proofs_are_the_definitions(size: int, data: st.DataObject) -> None:
    leaves, first = some(size), data.draw(st.integers(1, size))
    assert roots(tree.consistency(first, size), store(leaves)) == merkle.consistency_proof(leaves, first)


@given(st.integers(1, 2**40), st.data())
def test_a_proof_needs_few_nodes_however_long_the_log_is(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    assert len(tree.needed(tree.inclusion(index, size))) <= 2 * size.bit_length()
    assert len(tree.needed(tree.consistency(index + 1, size))) <= 2 * size.bit_length() + 1
