"""Every lie that we know how to tell, without a platform: refused, and by the rule that is there for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from tests.attacks import victim
from tests.attacks.court import Court
from tests.attacks.lies.every import LIES, Lie

from labapex.protocol.records import Leaf

FORETOLD = {name: lie for name, lie in LIES.items() if lie.foretold}
SHOWN = {"half-a-layer-pruned-from-here-on"}  # a chunk tells the update that is claimed away
EXCHANGES = {
    name: lie for name, lie in LIES.items() if lie.job == victim.LONG_RUN and name not in FORETOLD.keys() | SHOWN
}
AT_FIRST = {name: lie for name, lie in LIES.items() if name not in EXCHANGES.keys() | FORETOLD.keys()}


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    trial = Court(tmp_path_factory.mktemp("court"))
    yield trial
    trial.close()


def test_the_job_that_is_lied_about_is_verified_where_nobody_lies(court: Court) -> None:
    found = court.honest()
    assert (found.verdict, found.rule) == ("verified", None)
    assert [r.rule for r in found.results.values() if r.result == "fail"] == []


@pytest.mark.parametrize("lie", AT_FIRST.values(), ids=AT_FIRST)
def test_a_lie_is_refused_by_the_rule_that_must_find_it(court: Court, lie: Lie) -> None:
    found = court.try_(lie)
    assert (found.verdict, found.rule) == ("rejected", lie.rule), found.reason


def test_a_worker_who_makes_just_those_segments_real_that_he_claims_to_be_the_largest_is_found_by_the_measured_ones(
    court: Court,
) -> None:
    found = court.try_(LIES["blind-top-q"]).results
    assert found["replay-top-q"].result == "fail"
    assert found["replay"].result == "fail"


def test_a_segment_of_nothing_passes_the_published_thresholds_and_not_ours(court: Court) -> None:
    found = court.try_(LIES["infinitesimal-updates"]).results
    assert found["vmo"].result == found["pev"].result == "pass"
    assert found["replay"].result == "fail"


@pytest.mark.parametrize("lie", EXCHANGES.values(), ids=EXCHANGES)
def test_a_state_that_was_exchanged_once_is_found_by_what_a_replay_never_changes(court: Court, lie: Lie) -> None:
    found = court.try_(lie)
    assert found.at_first == "verified"
    assert (found.verdict, found.rule) == ("rejected", lie.rule), found.reason


@pytest.mark.parametrize("lie", FORETOLD.values(), ids=FORETOLD)
def test_settings_that_departed_from_the_foretold_ones_are_looked_at_and_refused(court: Court, lie: Lie) -> None:
    found = court.try_(lie)
    assert found.at_first == "verified"
    assert (found.verdict, found.rule) == ("rejected", lie.rule), found.reason
    assert (found.results["skeleton"].value, found.results["skeleton"].result) == (3.0, "fail")


def test_a_jump_that_is_claimed_away_is_a_lie_that_a_chunk_alone_shows(court: Court) -> None:
    found = court.try_(LIES["a-jump-that-is-claimed-away"]).results
    assert found["leaf-claims"].result == "fail"
    assert "claim smaller updates" in found["leaf-claims"].detail


@pytest.mark.parametrize("norm", [float("inf"), float("nan"), -1.0])
def test_a_norm_that_is_none_is_refused_before_it_is_read(norm: float) -> None:
    zero = "0" * 64
    with pytest.raises(ValidationError):
        Leaf(
            index=1,
            step=1,
            state=zero,
            size=1,
            chunks=1,
            settings=zero,
            update_norm=norm,
            batches=zero,
            losses=zero,
            prev=zero,
        )
