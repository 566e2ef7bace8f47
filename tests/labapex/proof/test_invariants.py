"""Searches end, within few states, at exactly the segments in which something changed that hardly ever does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attacks import victim
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab

from labapex.proof.invariants import RARE, SEARCHES, rare_changes, searches
from labapex.proof.policy import decide
from labapex.proof.rules import judge

Entries = dict[str, bytes]


@dataclass
class Search:
    asked: list[int]  # states, in order
    replayed: set[int]
    rounds: int


def follow(
    state: Callable[[int], Entries],
    drawn: set[int],
    replayed: set[int],
    *,
    turns: set[int] | None = None,
    keep: int = 1,
) -> Search:
    """Give the searches whatever they ask for until they ask for nothing more."""
    opened, found = {n: state(n) for n in drawn}, Search([], set(), 0)
    while more := searches(opened, replayed | found.replayed, turns=turns or set(), keep=keep):
        assert not more.indices & opened.keys()
        assert not more.segments & (replayed | found.replayed)
        assert len(more.indices) + len(more.segments) <= SEARCHES
        assert all(min(opened) < n < max(opened) for n in more.indices)
        opened |= {n: state(n) for n in more.indices}
        found.asked += sorted(more.indices)
        found.replayed |= more.segments
        found.rounds += 1
    return found


def history(changes: dict[str, set[int]]) -> Callable[[int], Entries]:
    """States in which each named entry changes in the segments told, beside one that always and one that never does."""

    def state(leaf: int) -> Entries:
        rare = {name: f"{sum(at < leaf for at in places)}".encode() for name, places in changes.items()}
        return {**rare, "structure/step": str(leaf).encode(), "tensors/data": b"the same"}

    return state


@settings(deadline=None)
@given(
    last=st.integers(20, 5000),
    names=st.lists(st.integers(1, 2), max_size=6),
    turn=st.integers(1, 400),
    keep=st.sampled_from([1, 1, 2, 7, 30]),
    dice=st.randoms(use_true_random=False),
)
def test_every_rare_change_is_followed_to_its_segment_and_nothing_else_is(
    last: int, names: list[int], turn: int, keep: int, dice: random.Random
) -> None:
    changes = {f"entry-{'abcdef'[n]}": set(dice.sample(range(last), count)) for n, count in enumerate(names)}
    drawn = {0, last, *dice.sample(range(last), 12)}
    replayed = set(dice.sample(sorted(drawn - {last}), 6))
    turns = set(range(turn, last + 1, turn))
    found = follow(history(changes), drawn, replayed, turns=turns, keep=keep)
    places = set().union(*changes.values())
    assert found.replayed == places - replayed
    assert len(found.asked) <= len(places) * (math.ceil(2 * math.log2(last)) + 6)


@settings(deadline=None)
@given(st.integers(1, 7798))
def test_one_exchange_among_7800_segments_is_found_with_a_dozen_states(where: int) -> None:
    drawn = {0, 1, 7799, 7800, *random.Random(7).sample(range(7800), 90)}
    found = follow(history({"tensors/x": {where}}), drawn, drawn - {7800, where}, turns=set(range(39, 7801, 39)))
    assert found.replayed == {where}
    assert len(found.asked) <= 12


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 60), st.dictionaries(st.sampled_from("abc"), st.binary(max_size=1))))
def test_no_history_makes_a_search_endless_or_ask_twice(states: dict[int, Entries]) -> None:
    ends: dict[int, Entries] = {0: {}, 60: {}}
    follow(lambda leaf: {**ends, **states}.get(leaf, {}), {0, 60, *states}, set())


def test_what_changes_all_the_time_is_not_searched() -> None:
    assert follow(history({}), set(range(0, 401, 20)), set()).asked == []


def test_entries_that_changed_together_are_one_search() -> None:
    together = {f"tensors/{name}": {333} for name in "abcdefgh"}
    alone = follow(history({"tensors/a": {333}}), set(range(0, 801, 50)), set())
    assert follow(history(together), set(range(0, 801, 50)), set()) == alone


def test_an_epochs_end_is_tried_first() -> None:
    found = follow(history({"structure/lr": {499}}), set(range(0, 2001, 160)), set(), turns={500, 1000, 1500})
    assert (found.asked, found.replayed) == ([500, 499], {499})


def test_a_state_that_the_host_keeps_is_asked_for_as_long_as_there_is_one() -> None:
    found = follow(history({"tensors/x": {333}}), set(range(0, 801, 80)), set(), keep=10)
    made_anew = [n % 10 != 0 for n in found.asked]
    assert made_anew == sorted(made_anew)
    assert sum(made_anew) <= 4


def test_what_changed_always_and_then_no_more_is_searched_where_it_ceased() -> None:
    def state(leaf: int) -> Entries:
        return {"tensors/frozen": str(min(leaf, 613)).encode(), "tensors/trained": str(leaf).encode()}

    assert follow(state, set(range(0, 801, 40)), set()).replayed == {612}


def test_a_buffer_that_turns_over_is_no_rare_change_and_one_that_is_exchanged_is() -> None:
    def turning(leaf: int) -> Entries:
        return {f"tensors/memory/{n}": str((leaf - n) // 300).encode() for n in range(300)}

    def exchanged(leaf: int) -> Entries:
        return {f"tensors/memory/{n}": str(leaf > 417).encode() for n in range(300)}

    drawn = set(range(0, 801, 40))
    assert rare_changes({n: turning(n) for n in drawn}) == {}
    assert follow(exchanged, drawn, set()).replayed == {417}


def test_the_rarest_changes_are_searched_first() -> None:
    changes = {f"tensors/{name}": {100 * n + 7} for n, name in enumerate("abcdef")}
    changes["tensors/often"] = {150 * n + 33 for n in range(RARE)}
    opened = {n: history(changes)(n) for n in range(0, 801, 20)}
    asked = searches(opened, set()).indices
    assert asked == {10, 110, 210, 310}


HARDER = (SCRIPTS / "curriculum.py").read_text().replace("range(3)", "range(8)")
MILESTONES = victim.edited(victim.LONG, "StepLR(optimizer, 1, gamma=0.97)", "MultiStepLR(optimizer, [4, 9])")


@pytest.mark.parametrize(
    ("script", "epochs"), [(HARDER, 8), (MILESTONES, 12)], ids=["data that grow harder", "milestones"]
)
def test_an_honest_run_is_verified_where_it_changed_what_hardly_ever_changes(
    lab: Lab, script: str, epochs: int, tmp_path: Path
) -> None:
    tried = lab.preflight(script, tmp_path, epochs=epochs)
    assert tried.facts is not None, tried.problem
    recording = lab.record(laboratory.contract(tried.facts, epochs=epochs, every=1), tmp_path)
    rounds = list(lab.look(recording, laboratory.challenge(recording, segments=0, ends=True)))
    assert decide(judge(rounds[-1]))[0] == "verified"
    assert len(rounds) <= 12
    if script == MILESTONES:
        assert {4 * 6 - 1, 9 * 6 - 1} <= set(rounds[-1].asked)
