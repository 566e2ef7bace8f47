"""A line between two classes is measured: without enough honest segments, or where these come near lies, there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.labapex.proof.honest import CONTRACT, ELSEWHERE, HERE, HONEST, REPORT, STEPS, segment, sha

from labapex.errors import MalformedInput
from labapex.proof.tolerance import (
    COARSEST_LOSS,
    FACTOR,
    LEAST_LIE,
    MAX_CALIBRATION,
    NEEDED,
    PHASES,
    RESOLUTION,
    Calibration,
    Line,
    Measured,
    Phase,
    described,
    loss_error,
    measure,
    start_error,
)
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.records import column
from labapex.protocol.replay import Distances

EMPTY = Calibration(worker=ELSEWHERE, verifier=HERE, checkpoint_every=4)
errors = st.floats(0, 1e3)


def calibrated(count: int = NEEDED, error: float | None = 1e-3, loss: float | None = 1e-5) -> Calibration:
    phases = tuple(Phase(until=until, segments=count, error=error, loss=loss) for until in PHASES)
    return EMPTY.model_copy(update={"phases": phases})


def line(found: Calibration, step: int = 0) -> Line | str:
    return found.tolerance(ELSEWHERE, HERE, 4).line(step, 20)


def test_a_line_is_some_times_the_largest_honest_error() -> None:
    assert line(calibrated()) == Line(start=FACTOR * RESOLUTION, error=FACTOR * 1e-3, loss=FACTOR * 1e-5)


@given(errors, errors)
def test_every_honest_error_that_was_measured_passes_the_line_and_no_lie_does(error: float, loss: float) -> None:
    found = line(calibrated(error=error, loss=loss))
    if isinstance(found, Line):
        assert error <= found.error < LEAST_LIE
        assert loss <= found.loss < COARSEST_LOSS
    else:
        assert FACTOR * error >= LEAST_LIE or FACTOR * loss >= COARSEST_LOSS


def test_too_few_segments_give_no_line() -> None:
    assert line(calibrated(NEEDED - 1)) == (
        f"of the phase until 5% of a run {NEEDED - 1} segments were measured, {NEEDED} are needed"
    )


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (calibrated(error=0.04), "honest segments end 0.04 apart"),
        (calibrated(error=None), "honest segments end apart beyond measure"),
        (calibrated(loss=0.02), "honest losses are 0.02 apart"),
        (calibrated().model_copy(update={"start": 0.3}), "honest starts are 0.3 apart"),
    ],
)
def test_where_honest_work_comes_near_lies_there_is_no_line(found: Calibration, says: str) -> None:
    said = line(found)
    assert isinstance(said, str)
    assert says in said


def test_a_calibration_says_nothing_of_other_classes_nor_of_another_k() -> None:
    found = calibrated()
    for other in (
        found.tolerance(HERE, ELSEWHERE, 4),
        found.tolerance(None, HERE, 4),
        found.tolerance(ELSEWHERE, HERE, 5),
    ):
        assert isinstance(other.line(0, 20), str)


def test_each_phase_has_its_own_line() -> None:
    early, middle, late = calibrated().phases
    found = EMPTY.model_copy(update={"phases": (early, middle, late.model_copy(update={"error": 0.5}))})
    assert [isinstance(line(found, step), Line) for step in (0, 1, 4, 5, 19)] == [True, True, True, False, False]
    assert (
        found.gap(CONTRACT)
        == "of the phase until 100% of a run honest segments end 0.5 apart: 3 times that is not below 0.09"
    )
    assert calibrated().gap(CONTRACT) is None


@given(st.lists(st.tuples(st.integers(0, 19), errors, errors), max_size=30))
def test_a_phase_holds_the_largest_of_what_was_measured_in_it(found: list[tuple[int, float, float]]) -> None:
    made = EMPTY.with_run(sha("run"), 0.0, [Measured(step, e, 0.0, x) for step, e, x in found], 20)
    assert sum(phase.segments for phase in made.phases) == len(found)
    bounds = [0, *(until * 20 for until in PHASES)]
    for n, phase in enumerate(made.phases):
        inside = [(e, x) for step, e, x in found if bounds[n] <= step < bounds[n + 1]]
        assert phase.error == max((e for e, _ in inside), default=0.0)
        assert phase.loss == max((x for _, x in inside), default=0.0)


def test_what_is_not_finite_stays_so_whatever_comes_after() -> None:
    first = EMPTY.with_run(sha("one"), None, [Measured(0, None, None, None)], 20)
    both = first.with_run(sha("two"), 0.0, [Measured(0, 0.0, 0.0, 0.0)], 20)
    assert (both.start, both.phases[0].error, both.phases[0].segments) == (None, None, 2)
    assert both.runs == (sha("one"), sha("two"))


def test_what_is_measured_are_the_errors_of_replayed_segments() -> None:
    far = Distances(l1=1, l2=1, linf=1, cos=1e-4, relative=0.002)
    losses = [x * 1.001 for x in HONEST.losses[STEPS[2] : STEPS[3]]]
    other = segment(2, state=sha("nearly"), distances=far, error=0.003, losses=column(losses))
    report = REPORT.model_copy(update={"segments": (segment(0), other), "initial_state": sha("x"), "start_error": 1e-7})
    same, nearly = measure(HONEST.leaves, HONEST.losses, report)
    assert (same.step, same.error, same.cos, same.loss) == (0, 0.0, 0.0, 0.0)
    assert (nearly.step, nearly.error, nearly.cos) == (STEPS[2], 0.003, 1e-4)
    assert nearly.loss == pytest.approx(1e-3)
    assert start_error(HONEST.leaves[0], report) == 1e-7
    assert start_error(HONEST.leaves[0], REPORT) == 0.0


def test_losses_are_compared_relatively_where_they_are_large() -> None:
    assert loss_error([100.0, 0.1], [101.0, 0.1]) == pytest.approx(0.01)
    assert loss_error([0.1], [0.2]) == pytest.approx(0.1)
    assert loss_error([float("nan")], [float("nan")]) == 0.0
    assert loss_error([float("nan")], [1.0]) == loss_error([1.0, 2.0], [1.0]) == float("inf")


def test_the_document_has_one_spelling_and_refuses_what_it_does_not_know() -> None:
    found = calibrated()
    assert parse(Calibration, canonical(found), limit=MAX_CALIBRATION) == found
    with pytest.raises(MalformedInput):
        parse(Calibration, canonical({**found.model_dump(mode="json"), "line": 0.5}), limit=MAX_CALIBRATION)


@pytest.mark.parametrize(
    "change",
    [
        {"phases": (Phase(until=0.5),)},
        {"phases": (Phase(until=1), Phase(until=0.5), Phase(until=1))},
        {"phases": ()},
        {"worker": HERE},
        {"runs": (sha("a"), sha("a"))},
        {"start": -1.0},
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Calibration.model_validate({**dict(calibrated()), **change})


def test_a_class_has_a_name_in_words() -> None:
    assert described(HERE) == "cpu: A (AVX2, torch 2.13.0, Python 3.11, 1 thread)"
    assert described(None) == "a class that nobody told"
