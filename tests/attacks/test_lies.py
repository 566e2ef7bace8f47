"""Every lie that we know how to tell, without a platform: refused, and by the rule that is there for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from tests.attacks.court import Court
from tests.attacks.lies.every import LIES, Lie

from labapex.protocol.records import Leaf


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    trial = Court(tmp_path_factory.mktemp("court"))
    yield trial
    trial.close()


def test_the_job_that_is_lied_about_is_verified_where_nobody_lies(court: Court) -> None:
    found = court.honest()
    assert (found.verdict, found.rule) == ("verified", None)
    assert [r.rule for r in found.results.values() if r.result == "fail"] == []


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lie_is_refused_by_the_rule_that_must_find_it(court: Court, lie: Lie) -> None:
    found = court.try_(lie)
    assert (found.verdict, found.rule) == ("rejected", lie.rule), found.reason


def test_a_worker_who_makes_just_the_largest_segments_real_passes_the_published_rule_alone(court: Court) -> None:
    found = court.try_(LIES["blind-top-q"]).results
    assert found["replay-top-q"].result == "pass"
    assert found["replay"].result == "fail"


def test_a_segment_of_nothing_passes_the_published_thresholds_and_not_ours(court: Court) -> None:
    found = court.try_(LIES["infinitesimal-updates"]).results
    assert found["vmo"].result == found["pev"].result == "pass"
    assert found["replay"].result == "fail"


@pytest.mark.parametrize("norm", [float("inf"), float("nan"), -1.0])
def test_a_norm_that_is_none_is_refused_before_it_is_read(norm: float) -> None:
    zero = "0" * 64
    with pytest.raises(ValidationError):
        Leaf(index=1, step=1, state=zero, size=1, update_norm=norm, batches=zero, losses=zero, prev=zero)
