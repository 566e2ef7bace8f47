"""What is drawn: the fixed segments always, the random ones from the whole run, and nothing that does not exist."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.proof.lab import contract

from labapex.proof.challenge import RANKED_EPOCHS, abrupt_changes, draw, draw_chunk, largest_updates
from labapex.proof.chunks import CHUNK, Change, Measured, updates
from labapex.protocol.contract import Contract, ScriptFacts, Stretch
from labapex.protocol.records import Leaf


def log(per_epoch: int, epochs: int, every: int, norms: list[float | None]) -> tuple[Contract, list[Leaf]]:
    facts = ScriptFacts(
        loop="train.py:1", iterations_per_epoch=per_epoch, has_loader=True, gradients_are_state=False, parameters=1,
        state_bytes=1,
    )  # fmt: skip
    terms = contract(facts, epochs=epochs, every=every)
    zero = "0" * 64
    leaves = [
        Leaf(
            index=n, step=step, state=zero, size=1, chunks=1, settings=zero,
            update_norm=norms[n % len(norms)], batches=zero, losses=zero,
            prev=zero,
        )
        for n, step in enumerate(terms.leaf_steps())
    ]  # fmt: skip
    return terms, leaves


def of_each_epoch(terms: Contract, leaves: list[Leaf], top: int) -> set[int]:
    return {segment for ranked in largest_updates(terms, leaves, None).values() for segment in ranked[:top]}


@given(
    per_epoch=st.integers(1, 30),
    epochs=st.integers(1, 5),
    every=st.integers(1, 40),
    count=st.integers(1, 50),
    top=st.integers(0, 3),
    ends=st.booleans(),
    seed=st.integers(),
    norms=st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=9),
)
def test_a_challenge_asks_for_what_exists_and_for_the_first_the_last_and_the_largest(
    per_epoch: int, epochs: int, every: int, count: int, top: int, ends: bool, seed: int, norms: list[float | None]
) -> None:
    terms, leaves = log(per_epoch, epochs, every, norms)
    opening = draw(
        terms, leaves, audit_segments=count, top_q=top, pev_percent=10, random=random.Random(seed), ends=ends
    )
    last = len(leaves) - 1
    assert set(opening.segments) <= set(range(last))
    assert {0, last - 1} | of_each_epoch(terms, leaves, top) <= set(opening.segments)
    assert len(opening.segments) >= min(count, last)
    assert set(opening.indices) >= set(opening.segments) | {last} | {e.leaf for e in opening.evaluations}
    assert set(opening.indices) <= set(range(last + 1))
    assert {c + 1 for c in opening.compare} <= set(opening.indices)
    if ends:
        assert opening.compare == opening.segments
    assert len({e.epoch for e in opening.evaluations}) == len(opening.evaluations) == min(3, epochs)
    assert [leaves[e.leaf].step for e in opening.evaluations] == [per_epoch * e.epoch for e in opening.evaluations]
    assert all(e.iterations and set(e.iterations) <= set(range(per_epoch)) for e in opening.evaluations)


def test_the_largest_update_of_each_epoch_is_taken_and_the_first_that_is_not_finite_before_it() -> None:
    terms, leaves = log(10, 2, 2, [0.0, 1.0, 5.0, 2.0, 1.0, 1.0, 9.0, None, None, 1.0, 1.0])
    assert of_each_epoch(terms, leaves, 1) == {1, 6}
    assert of_each_epoch(terms, leaves, 2) == {1, 2, 6, 7}
    assert of_each_epoch(terms, leaves, 0) == set()


def test_every_segment_can_be_drawn() -> None:
    terms, leaves = log(10, 2, 2, [1.0])
    drawn = set()
    for seed in range(200):
        opening = draw(terms, leaves, audit_segments=1, top_q=0, pev_percent=10, random=random.Random(seed), ends=False)
        drawn |= set(opening.segments)
    assert drawn == set(range(len(leaves) - 1))


@pytest.mark.parametrize(
    "norms",
    [
        [0.0, 1.0, 1.2, 0.9, 1.1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 1.2, 0.9, 1.1, 1.0, None, None, None, None, None],
        [0.0, 1.0, 1.2, 0.9, 1.1, 1.0, 1e-6, 1.1e-6, 1e-6, 1e-6, 1.2e-6],
        [0.0, 1e-9, 1e-9, 1e-9, 1e-9, 1e-9, 1.0, 1.1, 1.0, 1.2, 1.0],
    ],
)
def test_where_updates_begin_or_cease_both_sides_are_looked_at(norms: list[float | None]) -> None:
    _, leaves = log(10, 1, 1, norms)
    assert abrupt_changes(leaves, updates(leaves, None), 1, random.Random(1)) == {4, 5}


def test_updates_that_never_change_are_left_to_chance() -> None:
    for norms in ([0.0], [1.0], [None], [1.0, 2.0, 1.0, 1.5, 0.6]):
        _, leaves = log(10, 2, 2, norms)
        assert abrupt_changes(leaves, updates(leaves, None), 2, random.Random(1)) == set()


def test_a_short_segment_is_no_abrupt_change() -> None:
    _, leaves = log(10, 2, 9, [0.0, 9.0, 1.0, 8.0, 2.0])  # of 9, 1, 8 and 2 iterations
    assert [leaf.step for leaf in leaves] == [0, 9, 10, 18, 20]
    assert abrupt_changes(leaves, updates(leaves, None), 2, random.Random(1)) == set()


def test_updates_are_ranked_by_what_was_measured_and_not_by_what_is_claimed() -> None:
    terms, leaves = log(10, 2, 2, [0.0, 1.0, 9.0, 1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0])
    norms = [1.0, 0.1, 1.0, 2.0, 1.0, 1.0, 0.1, 1.0, 1.0, 3.0]
    measured = Measured(0.25, tuple(Change(n, n + 1, norm) for n, norm in enumerate(norms)))
    ranked = largest_updates(terms, leaves, measured)
    assert {epoch: first for epoch, (first, *_) in ranked.items()} == {0: 3, 1: 9}
    drawn = draw(
        terms, leaves, measured=measured, audit_segments=1, top_q=1, pev_percent=10, random=random.Random(1), ends=False
    )
    assert {3, 9} <= set(drawn.segments)


def test_a_jump_that_is_claimed_away_is_looked_at_where_it_was_measured() -> None:
    terms, leaves = log(20, 1, 1, [1.0])
    norms = [1.0] * 8 + [40.0] + [1.0] * 11
    measured = Measured(0.01, tuple(Change(n, n + 1, norm) for n, norm in enumerate(norms)))
    for seed in range(10):
        drawn = draw(
            terms, leaves, measured=measured, audit_segments=1, top_q=0, pev_percent=10, random=random.Random(seed),
            ends=False,
        )  # fmt: skip
        assert {7, 8, 9} <= set(drawn.segments)


def test_a_change_between_states_that_were_kept_counts_for_each_segment_of_it() -> None:
    _, leaves = log(10, 1, 2, [1.0])
    measured = Measured(0.25, (Change(0, 2, 3.0), Change(2, 4, None), Change(4, 5, 1.0)))
    assert updates(leaves, measured) == [3.0, 3.0, float("inf"), float("inf"), 2.0]


def test_of_a_long_run_the_largest_updates_of_a_few_epochs_are_drawn_and_that_of_the_whole_run() -> None:
    terms, leaves = log(4, 100, 1, [1.0])
    norms = [1.0] * 400
    norms[271] = 2.0
    measured = Measured(1.0, tuple(Change(n, n + 1, norm) for n, norm in enumerate(norms)))
    for seed in range(5):
        drawn = draw(
            terms, leaves, measured=measured, audit_segments=1, top_q=1, pev_percent=25, random=random.Random(seed),
            ends=False,
        )  # fmt: skip
        assert 271 in drawn.segments
        assert len(drawn.segments) <= 4 + RANKED_EPOCHS


def test_a_chunk_is_drawn_from_all_of_the_parameters_and_from_nothing_else() -> None:
    terms, _ = log(10, 1, 2, [1.0])
    assert draw_chunk(terms, random.Random(1)) is None
    layout = (Stretch(type="float32", size=3 * CHUNK + 4),)
    terms = terms.model_copy(update={"facts": terms.facts.model_copy(update={"layout": layout})})
    assert {draw_chunk(terms, random.Random(seed)) for seed in range(60)} == {0, 1, 2, 3}
