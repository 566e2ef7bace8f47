"""What findings make of a worker, whatever their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labapex_server.workers.models import Finding
from labapex_server.workers.reputation import TRUSTED_AFTER, Reputation, fold

HISTORIES = st.lists(st.sampled_from(Finding), max_size=40)
BAD = st.sampled_from((Finding.FALSE, Finding.UNOPENED, Finding.BANNED))


@given(HISTORIES, BAD)
def test_one_lie_ends_all_trust_at_once_and_ten_verified_jobs_regain_it(past: list[Finding], lie: Finding) -> None:
    history = [*past, lie]
    for verified in range(TRUSTED_AFTER):
        found = fold(history)
        assert not found.trusted
        assert (found.in_a_row, found.score <= 100 * verified / TRUSTED_AFTER) == (verified, True)
        history.append(Finding.VERIFIED)
    assert fold(history).trusted


@given(HISTORIES)
def test_a_verified_job_never_costs_and_a_lost_one_never_gains_reputation(past: list[Finding]) -> None:
    before = fold(past)
    better, worse = fold([*past, Finding.VERIFIED]), fold([*past, Finding.LOST])
    assert 0 <= worse.score <= before.score <= better.score <= 100
    assert worse.trusted == before.trusted <= better.trusted
    assert worse.reliability <= before.reliability <= better.reliability


def test_the_reasons_name_all_that_counts() -> None:
    assert str(Reputation()) == "0 of 100 (new: nothing of it was judged yet)"
    past = [Finding.FALSE, Finding.UNOPENED, *[Finding.VERIFIED] * 9, Finding.LOST]
    assert str(fold(past)) == "82 of 100 (9 verified in a row, trusted after 10; 1 proven false; 1 not opened; 1 lost)"
    assert str(fold([Finding.VERIFIED] * 12)) == "100 of 100 (trusted: 12 verified in a row)"
