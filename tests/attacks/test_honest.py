"""Honest runs are never refused. All of them: `make honest`; every style of script: `tests/labapex/proof/test_styles.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attacks import elsewhere, honest, matrix
from tests.attacks.court import Court, Judgement
from tests.attacks.honest import OWN, Run
from tests.labapex.proof.lab import Lab


@pytest.fixture(scope="module")
def labs() -> Iterator[dict[int, Lab]]:
    with honest.labs() as at:
        yield at


@pytest.mark.parametrize("run", OWN, ids=lambda run: run.name)
def test_an_honest_run_passes_every_rule(labs: dict[int, Lab], run: Run, tmp_path: Path) -> None:
    found = honest.judge_run(labs[run.threads], run, tmp_path)
    assert found.verdict == "verified", found.reason
    assert [r.rule for r in found.results.values() if r.result == "fail" and r.rule not in ("pace", "pev")] == []


def test_a_run_with_which_another_host_went_on_in_mid_epoch_passes_every_rule(
    labs: dict[int, Lab], tmp_path: Path
) -> None:
    found = honest.judge_run(labs[1], honest.RESUMED[0], tmp_path)
    assert found.verdict == "verified", found.reason


def test_an_honest_run_of_another_class_passes_the_lines_that_others_gave(tmp_path: Path) -> None:
    crossing, script = elsewhere.CROSSINGS[0], elsewhere.SCRIPTS_ELSEWHERE["SGD, batch norm"]
    with elsewhere.pair(crossing, tmp_path) as hosts:
        facts = hosts.facts(script, 4)
        result = hosts.judge(facts, 4, 100, hosts.calibrate(facts, 4))
    assert isinstance(result, Judgement), result
    assert result.verdict == "verified", result.reason
    assert result.results["replay"].value != 0.0  # they are of different classes
    assert result.results["initialisation"].value != "equal"


def test_every_seed_has_one_start_of_its_own(tmp_path: Path) -> None:
    court = Court(tmp_path)
    assert honest.starts(court, 10) == (10, 10)
    court.close()


def test_the_statistical_test_needs_its_correction_to_spare_honest_starts(tmp_path: Path) -> None:
    court = Court(tmp_path)
    plain, corrected = honest.spread(court, 60)
    court.close()
    assert corrected <= 3 < plain


def test_the_matrix_prints_a_row_for_each_lie_and_succeeds_where_all_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert matrix.main(["jittered-losses", "one-checkpoint-of-another-lease"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[0] == "lie"
    assert said[1].endswith("verified")
    assert [line.split()[0] for line in said if line.endswith(": point-loss")] == ["jittered-losses"]
    assert said[-1] == "2 lies, 2 refused"
