"""Honest evidence passes every deciding rule; each single lie in it fails the rule that is there for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.proof.honest import (
    ASKED,
    ELSEWHERE,
    HERE,
    HONEST,
    LOSSES,
    STEPS,
    segment,
    sha,
    told,
    with_leaf,
    with_segment,
)

from labapex.proof.chunks import Change, Measured
from labapex.proof.policy import REQUIRED, WEIGHTS, decide
from labapex.proof.rules import RULES, Evidence, judge, replay_max_error, unjudged
from labapex.proof.tolerance import FACTOR, NEEDED, Calibration, Line, Phase, Tolerance, described
from labapex.protocol.contract import Environment
from labapex.protocol.records import Sample, column
from labapex.protocol.replay import Distances
from labapex.protocol.verdict import Weight


def test_honest_evidence_passes_every_rule_that_looks() -> None:
    results = judge(HONEST)
    assert [r.rule for r in results if r.result == "fail"] == []
    assert {r.rule for r in results} == set(RULES) == set(WEIGHTS)
    assert decide(results)[:2] == ("verified", None)
    assert replay_max_error(HONEST) == 0.0


LINE = Line(start=1e-5, error=0.02, loss=1e-4)
OWN = Tolerance(own=LINE, source="the line is the verifier's own")


def elsewhere(evidence: Evidence, **changes: Any) -> Evidence:
    """The evidence of a worker of another class, for which there is a line."""
    return replace(evidence, **({"worker_environment": ELSEWHERE, "tolerance": OWN} | changes))


def ending(error: float | None, losses: list[float] | None = None) -> Evidence:
    """Segment 2 ends in another state than the committed one, so far from it."""
    changes: dict[str, Any] = {} if losses is None else {"losses": column(losses)}
    far = Distances(l1=0.1, l2=0.1, linf=0.1, cos=0.0, relative=error)
    return with_segment(HONEST, 2, state=sha("nearly"), distances=far, error=error, **changes)


def test_honest_evidence_of_another_class_passes_within_the_line() -> None:
    evidence = elsewhere(ending(0.004, [x * (1 + 1e-5) for x in LOSSES[STEPS[2] : STEPS[3]]]))
    evidence = told(evidence, initial_state=sha("nearly the start"), start_error=1e-7)
    results = {r.rule: r for r in judge(evidence)}
    assert unjudged(evidence, list(results.values())) is None
    assert decide(list(results.values()))[0] == "verified"
    assert replay_max_error(evidence) == 0.004
    assert (results["replay"].value, results["replay"].limit) == (0.004, 0.02)
    assert results["replay"].detail.endswith("of different classes; the line is the verifier's own")
    assert (results["initialisation"].value, results["initialisation"].limit) == (1e-7, 1e-5)


FAR_START = told(HONEST, initial_state=sha("other"), start_error=0.1)
BETWEEN: dict[str, tuple[str, Evidence]] = {
    "a segment ends beyond the line": ("replay", ending(0.021)),
    "a segment ends where nothing can be measured": ("replay", ending(None)),
    "a later loss of a segment is better than it was": ("point-loss", ending(
        0.001, [*LOSSES[STEPS[2] : STEPS[3] - 1], LOSSES[STEPS[3] - 1] - 2e-4])),
    "it began elsewhere": ("initialisation", FAR_START),
    "it began where nothing can be measured": ("initialisation", told(FAR_START, start_error=None)),
}  # fmt: skip


@pytest.mark.parametrize("lie", BETWEEN)
def test_another_class_is_no_way_past_a_line(lie: str) -> None:
    rule, evidence = BETWEEN[lie]
    results = judge(elsewhere(evidence))
    assert unjudged(elsewhere(evidence), results) is None
    assert decide(results)[:2] == ("rejected", rule)


@pytest.mark.parametrize("evidence", [ending(1e-9), ending(1.0), FAR_START], ids=["near", "far", "start"])
@pytest.mark.parametrize("claimed", [ELSEWHERE, None])
def test_without_a_line_there_is_no_verdict_by_guess(evidence: Evidence, claimed: Environment | None) -> None:
    evidence = elsewhere(evidence, tolerance=Tolerance(), worker_environment=claimed)
    results = judge(evidence)
    why = unjudged(evidence, results)
    assert why is not None
    assert "no calibration of this pair of classes is at hand" in why
    assert described(claimed) in why
    assert "Verify on a host of that class, or calibrate" in why
    assert decide(results)[0] == "rejected"  # for whoever does not ask


def test_what_is_equal_to_the_last_bit_needs_no_line() -> None:
    evidence = elsewhere(HONEST, tolerance=Tolerance())
    results = judge(evidence)
    assert unjudged(evidence, results) is None
    assert decide(results)[0] == "verified"


def test_what_another_rule_refuses_is_refused_without_a_line() -> None:
    evidence = elsewhere(ending(1e-9), tolerance=Tolerance(), opening_problem="state 3 came too late")
    results = judge(evidence)
    assert unjudged(evidence, results) is None
    assert decide(results)[:2] == ("rejected", "opening")


@pytest.mark.parametrize("changes", [{"distances": None}, {"origin": 0}])
def test_a_segment_whose_states_were_not_opened_cannot_be_judged(changes: dict[str, Any]) -> None:
    evidence = elsewhere(with_segment(ending(1e-9), 2, state=sha("nearly"), error=1e-9, **changes))
    assert "not all states were opened" in (unjudged(evidence, judge(evidence)) or "")


def test_a_start_that_was_not_opened_cannot_be_judged() -> None:
    late = tuple(segment(n) for n in ASKED[1:])
    evidence = elsewhere(told(FAR_START, segments=late, start_error=None), asked=ASKED[1:])
    assert "not all states were opened" in (unjudged(evidence, judge(evidence)) or "")


@given(error=st.floats(0, 1e3))
def test_each_phase_is_judged_by_its_own_line(error: float) -> None:
    lines = [
        Phase(until=until, segments=NEEDED, error=e, loss=0.0)
        for until, e in ((STEPS[2] / 20, 0.029), (STEPS[3] / 20, 1e-3), (1, 0.029))
    ]
    found = Calibration(worker=ELSEWHERE, verifier=HERE, checkpoint_every=4, phases=tuple(lines))
    evidence = elsewhere(ending(error), tolerance=found.tolerance(ELSEWHERE, HERE, 4))
    (result,) = [r for r in judge(evidence) if r.rule == "replay"]
    assert (result.result == "pass") == (error <= FACTOR * 1e-3)
    assert result.limit == FACTOR * 1e-3


MOVED = Measured(
    0.01, tuple(Change(n, n + 1, n + 1.0 + (n == 3)) for n in range(len(STEPS) - 1))
)  # one chunk's changes

LIES: dict[str, tuple[str, Evidence]] = {
    "a state is withheld": ("opening", replace(HONEST, opening_problem="state 3 came too late")),
    "a state is not the committed one": ("opening", told(HONEST, mismatched=(2,))),
    "a frame is missing": ("log-chain", replace(HONEST, chain_problem="frame 7 is missing")),
    "a leaf is missing": ("log-chain", replace(HONEST, leaves=HONEST.leaves[:-1])),
    "a leaf is chained to another": ("log-chain", replace(HONEST, leaves=[
        *HONEST.leaves[:2], HONEST.leaves[2].model_copy(update={"prev": sha("x")}), *HONEST.leaves[3:]])),
    "a leaf commits to other losses": ("log-chain", with_leaf(2, losses=sha("other"))),
    "a leaf stands at another step": ("log-chain", with_leaf(2, step=7)),
    "leaves come out of order": ("log-chain", replace(HONEST, leaf_received_at=[3, 2, *HONEST.leaf_received_at[2:]])),
    "an iteration is missing": ("log-count", replace(HONEST, losses=LOSSES[:-1])),
    "an iteration is too many": ("log-count", replace(HONEST, losses=[*LOSSES, 0.1])),
    "a state was copied from another lease": ("uniqueness", replace(with_leaf(2, state=sha("copied")), known={sha("copied")})),
    "it began elsewhere": ("initialisation", with_leaf(0, state=sha("stolen"))),
    "it took other batches": ("batch-order", with_leaf(3, batches=sha("easy ones"))),
    "its losses were invented": ("point-loss", with_segment(HONEST, 2, losses=column(
        [x + 1e-9 for x in LOSSES[STEPS[2] : STEPS[3]]]))),
    "its losses are too few": ("point-loss", with_segment(HONEST, 2, losses=column(LOSSES[:1]))),
    "its loss is not a number": ("point-loss", with_segment(HONEST, 0, losses=column([math.nan] * 4))),
    "a segment ends in another state": ("replay", with_segment(HONEST, 2, state=sha("other"), distances=None)),
    "a segment was not replayed": ("replay", told(HONEST, segments=tuple(segment(n) for n in ASKED[:-1]))),
    "nothing was replayed": ("replay", told(HONEST, segments=())),
    "the replay broke": ("replay", told(HONEST, problem="ValueError: no")),
    "its update was understated": ("leaf-claims", with_leaf(3, update_norm=1e-3)),
    "its update was said to be finite": ("leaf-claims", with_segment(HONEST, 2, update_norm=None)),
    "an update is below what a chunk of it shows": ("leaf-claims", replace(HONEST, measured=MOVED, replay=None)),
    "its first leaf claims an update": ("leaf-claims", with_leaf(0, update_norm=1.0)),
    "nobody looked": ("replay", replace(HONEST, replay=None)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_fails_the_rule_that_is_there_for_it(lie: str) -> None:
    rule, evidence = LIES[lie]
    results = judge(evidence)
    found = {r.rule: r for r in results}[rule]
    assert found.result != "pass"
    verdict, deciding, reason = decide(results)
    assert verdict == "rejected"
    assert deciding in (rule, "log-chain", "opening")
    assert reason.startswith(f"{deciding}: ")


def test_a_false_class_does_not_hide_a_false_loss_in_a_segment_that_was_reproduced() -> None:
    start, stop = STEPS[2], STEPS[3]
    recomputed = column([LOSSES[start], *(0.9 * loss for loss in LOSSES[start + 1 : stop])])
    lied = replace(with_segment(HONEST, 2, losses=recomputed), worker_environment=ELSEWHERE)
    assert decide(judge(lied))[:2] == ("rejected", "point-loss")


def test_published_thresholds_accept_doing_nothing_and_so_do_not_decide() -> None:
    nothing = Distances(l1=0.1, l2=0.1, linf=0.1, cos=0.0, relative=1.0)
    evidence = with_segment(HONEST, ASKED[-1], state=sha("untouched"), distances=nothing)
    results = {r.rule: r for r in judge(evidence)}
    assert results["vmo"].result == "pass"
    assert results["replay-top-q"].result == "pass"
    assert results["replay"].result == "fail"
    informing = {"replay-top-q", "vmo", "pev", "provenance", "initialisation-ks"}
    assert {r.rule for r in results.values() if r.weight is Weight.INFORMS} == informing


def test_pev_is_the_papers_formula() -> None:
    (found,) = [r for r in judge(HONEST) if r.rule == "pev"]
    mean = sum(LOSSES[:10]) / 10
    sigma = math.sqrt(sum((x - mean) ** 2 for x in LOSSES[:10]) / 10)
    second = sum(LOSSES[10:]) / 10
    assert found.limit == pytest.approx(sigma * 10, rel=0.2)
    assert found.value in (pytest.approx(abs(mean - 1.8)), pytest.approx(abs(second - 0.9)))


def samples(*utilisation: float, memory: list[int] | None = None) -> list[Sample]:
    used = memory or [0, *[800] * (len(utilisation) - 1)]
    return [
        Sample(at=n, source="nvml", device="A", utilisation=u, memory=m, memory_total=1000)
        for n, (u, m) in enumerate(zip(utilisation, used, strict=True))
    ]


TELEMETRY: list[tuple[list[Sample], str, str]] = [
    (samples(*[90, 95, 80, 99] * 5), "gpu-utilisation", "pass"),
    (samples(*[100] * 20), "gpu-utilisation", "pass"),
    (samples(*[0, 1] * 10), "gpu-utilisation", "fail"),
    (samples(*[100, 5, 5, 5, 5] * 4), "gpu-utilisation", "fail"),
    (samples(*[50] * 20), "gpu-memory", "pass"),
    (samples(*[50] * 20, memory=[100] * 15 + [900] * 5), "gpu-memory", "fail"),
    (samples(*[50] * 3), "gpu-memory", "not-applicable"),
]


@pytest.mark.parametrize(("given_samples", "rule", "expected"), TELEMETRY)
def test_telemetry_suspects_and_never_decides(given_samples: list[Sample], rule: str, expected: str) -> None:
    results = judge(replace(HONEST, samples=given_samples))
    assert {r.rule: r.result for r in results}[rule] == expected
    assert decide(results)[0] == "verified"


def outcome(evidence: Evidence, rule: str) -> str:
    return next(r.result for r in judge(evidence) if r.rule == rule)


def test_a_state_that_its_own_seed_leads_to_is_honest_wherever_else_it_occurs() -> None:
    """The first, and the ends of replayed segments: a script may come to one state from all seeds."""
    reached = {HONEST.leaves[0].state, *(HONEST.leaves[n + 1].state for n in ASKED)}
    assert outcome(replace(HONEST, known=reached), "uniqueness") == "pass"
    assert outcome(replace(HONEST, known={HONEST.leaves[2].state}), "uniqueness") == "fail"


def test_no_script_is_refused_for_states_that_its_seed_does_not_decide() -> None:
    everything = {leaf.state for leaf in HONEST.leaves}
    for distance in (None, 0.0):
        evidence = replace(told(HONEST, reference_distance=distance), known=everything)
        assert outcome(evidence, "uniqueness") == "not-applicable"
    diverged = replace(with_leaf(2, update_norm=None), known={HONEST.leaves[2].state})
    assert outcome(diverged, "uniqueness") == "pass"  # two runs that fell to NaN look alike
    assert outcome(replace(HONEST, known=None), "uniqueness") == "not-applicable"


def at_pace(seconds: float) -> list[float]:
    return [1e9 + seconds * n for n in range(20)]


def paced(times: list[float], *, late: float = 60.0, **changes: Any) -> Evidence:
    """Evidence with these times, and leaves that arrive somewhat after the last iteration of an honest run."""
    return replace(HONEST, times=times, leaf_received_at=[1e9 + late + n for n in range(len(STEPS))], **changes)


PACES: dict[str, tuple[str, Evidence]] = {
    "as in the preflight": ("pass", paced(at_pace(2.0))),
    "ten times as fast": ("pass", paced(at_pace(0.2))),
    "far faster than its class": ("fail", paced(at_pace(0.05))),
    "as fast as a GPU": ("pass", paced(at_pace(0.05), verifier_environment=ELSEWHERE)),
    "all at once": ("fail", paced(at_pace(0.0), verifier_environment=ELSEWHERE)),
    "one epoch at once": ("fail", paced([*at_pace(2.0)[:10], *[1e9 + 18.5] * 10])),
    "backwards": ("fail", paced(at_pace(-2.0))),
    "a clock that was set back by half a second": (
        "pass",
        paced([*at_pace(2.0)[:10], *[t - 2.5 for t in at_pace(2.0)[10:]]]),
    ),
    "not a time": ("fail", paced([math.nan, *at_pace(2.0)[1:]])),
    "endless": ("fail", paced([*at_pace(2.0)[:-1], math.inf])),
    "committed before it took place": ("fail", paced(at_pace(2.0), late=-3600)),
    "an hour late": ("pass", paced(at_pace(2.0), late=3600)),
    "no preflight": ("not-applicable", paced(at_pace(0.0), iteration_seconds=None)),
    "nothing logged": ("not-applicable", paced([])),
}


@pytest.mark.parametrize("run", PACES)
def test_pace_suspects_what_no_device_can_do(run: str) -> None:
    expected, evidence = PACES[run]
    results = judge(evidence)
    assert {r.rule: r.result for r in results}["pace"] == expected
    assert decide(results)[0] == "verified"


@pytest.mark.parametrize("rule", REQUIRED)
def test_what_must_have_passed_cannot_be_left_out(rule: str) -> None:
    results = [r.model_copy(update={"result": "not-applicable"}) if r.rule == rule else r for r in judge(HONEST)]
    assert decide(results)[:2] == ("rejected", rule)


@pytest.mark.parametrize("rule", [r for r, w in WEIGHTS.items() if w is Weight.DECIDES])
def test_a_deciding_rule_decides_alone(rule: str) -> None:
    results = [r.model_copy(update={"result": "fail"}) if r.rule == rule else r for r in judge(HONEST)]
    assert decide(results)[:2] == ("rejected", rule)


@pytest.mark.parametrize("rule", [r for r, w in WEIGHTS.items() if w is not Weight.DECIDES])
def test_no_other_rule_decides(rule: str) -> None:
    results = [r.model_copy(update={"result": "fail"}) if r.rule == rule else r for r in judge(HONEST)]
    assert decide(results)[0] == "verified"
