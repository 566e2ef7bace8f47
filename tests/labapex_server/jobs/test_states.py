from __future__ import annotations

from pathlib import Path

import pytest

from labapex.protocol.states import END_STATES, JobState
from labapex_server.jobs import states

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "states.md"


def test_every_state_stands_in_the_table() -> None:
    assert set(states.TRANSITIONS) == set(JobState)


@pytest.mark.parametrize("state", JobState)
def test_a_state_has_a_way_on_unless_it_is_an_end_and_only_a_stopped_job_is_taken_up_again(state: JobState) -> None:
    follows = {JobState.QUEUED} if state is JobState.CANCELLED else set()
    assert set(states.TRANSITIONS[state]) == follows if state in END_STATES else states.TRANSITIONS[state]


@pytest.mark.parametrize("state", JobState)
def test_an_end_is_in_reach_from_everywhere(state: JobState) -> None:
    reached, frontier = {state}, {state}
    while frontier:
        frontier = {after for before in frontier for after in states.TRANSITIONS[before]} - reached
        reached |= frontier
    assert reached & END_STATES


def test_complete_work_cannot_be_stopped_by_the_one_who_would_have_to_pay() -> None:
    assert not states.STOPPABLE & {JobState.CHALLENGED, JobState.VERIFYING, JobState.SETTLING}


def test_the_documented_table_is_the_one_in_force() -> None:
    assert states.table() in DOCUMENT.read_text()
