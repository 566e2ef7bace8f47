from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labapex.proof.runs import Run, runs

leaves = st.sets(st.integers(0, 40))


def test_a_segment_whose_state_is_at_hand_is_a_run_of_its_own() -> None:
    assert runs([3, 4, 7], range(10)) == [Run(3, 4), Run(4, 5), Run(7, 8)]


def test_one_run_passes_all_segments_up_to_the_next_state_that_is_at_hand() -> None:
    assert runs([1, 6, 8], [0, 5]) == [Run(0, 2), Run(5, 9)]


@given(wanted=leaves, here=leaves)
def test_every_segment_that_can_be_reached_is_passed_once_and_no_run_is_longer_than_it_must_be(
    wanted: set[int], here: set[int]
) -> None:
    found = runs(wanted, here)
    passed = [segment for run in found for segment in range(run.leaf, run.stop)]
    assert len(passed) == len(set(passed))
    assert set(passed) & wanted == {segment for segment in wanted if any(leaf <= segment for leaf in here)}
    for run in found:
        assert run.leaf in here
        assert run.stop - 1 in wanted
        assert not here & set(range(run.leaf + 1, run.stop))
