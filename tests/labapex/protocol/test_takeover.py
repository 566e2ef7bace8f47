"""One run on several hosts, as its contract tells it: whose each iteration, leaf and epoch is, whatever the cuts."""

from __future__ import annotations

from itertools import pairwise
from uuid import UUID

import hypothesis.strategies as st
import pytest
from hypothesis import given
from pydantic import ValidationError
from tests.labapex.protocol.test_contract import contract

from labapex.errors import MalformedInput
from labapex.proof.folder import check_bounds
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract, Handover
from labapex.protocol.records import Leaf


def a_leaf(index: int, step: int) -> Leaf:
    return Leaf(
        index=index,
        step=step,
        state="aa" * 32,
        size=1,
        chunks=1,
        settings="bb" * 32,
        update_norm=1.0,
        batches="cc" * 32,
        losses="dd" * 32,
        prev="ee" * 32,
    )


@st.composite
def runs(draw: st.DrawFn) -> Contract:
    """A run that went through some hosts, each of which left some of its states to the platform."""
    terms = contract(
        epochs=draw(st.integers(1, 5)), every=draw(st.integers(1, 9)), per_epoch=draw(st.integers(1, 12))
    ).model_copy(update={"keep_every": draw(st.integers(1, 4))})
    steps = terms.leaf_steps()
    cuts = draw(st.lists(st.integers(1, len(steps) - 2), unique=True, max_size=4)) if len(steps) > 2 else []
    handovers, before = [], -1
    for number, cut in enumerate(sorted(cuts)):
        between = draw(st.sets(st.integers(before + 1, cut)))
        held = tuple(sorted(between | {cut} | ({0} if before < 0 else set())))
        handovers.append(Handover(lease=UUID(int=100 + number), leaf=a_leaf(cut, steps[cut]), held=held))
        before = cut
    return Contract.model_validate(terms.model_dump() | {"handovers": handovers})


@given(runs())
def test_each_iteration_and_leaf_is_one_hosts(terms: Contract) -> None:
    stints = terms.stints()
    assert [stint.lease for stint in stints] == [*(each.lease for each in terms.handovers), terms.lease]
    assert (stints[0].start, stints[-1].stop) == (0, terms.iterations)
    assert (stints[0].first, stints[-1].last) == (0, len(terms.leaf_steps()) - 1)
    for before, after in pairwise(stints):
        assert (before.stop, before.last + 1) == (after.start, after.first)
        assert terms.stint_of(before.last - 1) == before
        assert terms.stint_of(before.last) == after  # the segment that begins with the state that was handed over


@given(runs())
def test_each_epoch_is_one_hosts(terms: Contract) -> None:
    per_epoch = terms.facts.iterations_per_epoch
    ended = [stint.stop // per_epoch - stint.start // per_epoch for stint in terms.stints()]
    assert sum(ended) == terms.epochs
    assert min(ended) >= 0


@given(runs())
def test_each_leaf_is_reached_from_a_state_that_can_be_shown(terms: Contract) -> None:
    after = -1 if terms.after is None else terms.after.index
    for index in range(len(terms.leaf_steps())):
        origin = terms.origin(index)
        assert origin <= index
        assert origin in terms.held if index <= after else origin == index
        assert not any(origin < held <= index for held in terms.held)
    kept = terms.kept_leaves()
    assert {index for index in kept if index <= after} == terms.held
    assert all(index % terms.keep_every == 0 for index in kept if after < index < len(terms.leaf_steps()) - 1)


@given(runs())
def test_who_goes_on_has_the_terms_of_who_began(terms: Contract) -> None:
    begun = terms.first
    assert begun.lease == terms.stints()[0].lease
    assert begun.model_dump(exclude={"lease", "handovers"}) == terms.model_dump(exclude={"lease", "handovers"})
    again = begun.model_copy(update={"lease": terms.lease, "handovers": terms.handovers})
    assert digest(again) == digest(terms)


@pytest.mark.parametrize(
    "held",
    [[(1, 2)], [(0, 1), (1, 2)], [(0, 2, 1)], [(0, 2), (1, 3)], [(0, 1, 1)], [()]],
    ids=["no first state", "twice", "no order", "another's stint", "doubled", "nothing"],
)
def test_handovers_that_do_not_follow_one_another_are_malformed(held: list[tuple[int, ...]]) -> None:
    terms = contract(epochs=3, every=2, per_epoch=5)
    steps = terms.leaf_steps()
    handovers = [
        {"lease": str(UUID(int=n)), "leaf": a_leaf(max(each, default=0), steps[max(each, default=0)]), "held": each}
        for n, each in enumerate(held)
    ]
    with pytest.raises(ValidationError):
        Contract.model_validate(terms.model_dump() | {"handovers": handovers})


@pytest.mark.parametrize(("index", "step"), [(9, 15), (90, 15), (2, 5)], ids=["the end", "beyond", "another step"])
def test_a_folder_whose_run_was_handed_over_where_it_cannot_go_on_is_malformed(index: int, step: int) -> None:
    terms = contract(epochs=3, every=2, per_epoch=5)
    handover = Handover(lease=UUID(int=9), leaf=a_leaf(index, step), held=(0, index))
    with pytest.raises(MalformedInput, match="handed over"):
        check_bounds(terms.model_copy(update={"handovers": (handover,)}))
