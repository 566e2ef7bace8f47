"""Each condition is told once, and its end once, whatever comes and goes."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given

from labapex.protocol.api import AlertKind
from labapex.protocol.states import END_STATES, JobState
from labapex_server.alerts.conditions import LASTING, Situation, change, standing
from labapex_server.alerts.trend import STALL_SECONDS, Trend

KINDS = st.sets(st.sampled_from(sorted(set(AlertKind) - {AlertKind.ENDED})))


@given(seen=st.lists(KINDS, max_size=20), ends=st.booleans())
def test_each_is_raised_once_and_recovers_once(seen: list[set[AlertKind]], ends: bool) -> None:
    known: dict[AlertKind, tuple[bool, bool]] = {}
    raised, recovered = Counter[AlertKind](), Counter[AlertKind]()
    for holds in [*seen, *([{AlertKind.ENDED}] if ends else [])]:
        news = change(known, dict.fromkeys(holds, "words"))
        raised.update(news.raised.keys())
        recovered.update(news.recovered)
        for kind in news.raised:
            known[kind] = (True, False)
        for kind in news.recovered | news.over:
            known[kind] = (False, True)
        for kind in news.back:
            known[kind] = (True, known[kind][1])
        if AlertKind.ENDED not in holds:
            assert {kind for kind, (stands, _) in known.items() if stands} - LASTING == holds - LASTING
        assert change(known, dict.fromkeys(holds, "words")) == change(known, dict.fromkeys(holds, "other words"))
    assert set(raised) == set().union(*seen) | ({AlertKind.ENDED} if ends else set())
    assert set(raised.values()) | set(recovered.values()) <= {1}
    assert not set(recovered) & LASTING


@given(state=st.sampled_from(sorted(END_STATES)))
def test_each_end_of_a_job_is_one_alert_that_names_the_cause(state: JobState) -> None:
    found = standing(Situation(state=JobState(state), reason="because of this", lost_contact=True, quiet=1e9))
    assert found == {AlertKind.ENDED: f"the job is {state.value}: because of this"}


def test_a_silent_worker_is_lost_contact_and_no_stall() -> None:
    quiet = Situation(state=JobState.RUNNING, quiet=STALL_SECONDS + 1)
    assert set(standing(quiet)) == {AlertKind.STALLED}
    assert set(standing(Situation(state=JobState.RUNNING, quiet=1e6, lost_contact=True))) == {AlertKind.LOST_CONTACT}
    assert standing(Situation(state=JobState.RUNNING, quiet=STALL_SECONDS)) == {}


@given(cost=st.integers(0, 10**9), budget=st.integers(1, 10**9), share=st.integers(1, 100))
def test_the_budget_is_told_from_its_share_on(cost: int, budget: int, share: int) -> None:
    found = standing(Situation(state=JobState.RUNNING, cost=cost, budget=budget, share=share, trend=Trend()))
    assert (AlertKind.BUDGET in found) == (cost * 100 >= share * budget)
