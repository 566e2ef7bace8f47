"""What readings of a device say of a run: the traces of a GPU, played to the real sampler, under the rules over telemetry."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.proof.test_rules import HONEST
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex.proof.policy import decide
from labapex.proof.rules import judge
from labapex.protocol.devices import Observation
from labapex.protocol.records import Sample
from labapex.protocol.verdict import RuleResult
from labapex_runner.samples import GpuMeter

GPU = "GPU-1"


def result(rule: str, samples: list[Sample], seen: list[Observation]) -> RuleResult:
    found = judge(replace(HONEST, samples=samples, observations=seen))
    assert decide(found)[0] == "verified"  # whatever the readings: they never decide
    return next(each for each in found if each.rule == rule)


def played(play: Play, trace: str, seconds: int) -> list[Sample]:
    """What the runner's meter reads of a trace, a second apart."""
    play(trace)
    meter = GpuMeter()
    read = [meter.read() for _ in range(seconds)]
    return [sample.model_copy(update={"at": 1e9 + at}) for at, sample in enumerate(read) if sample is not None]


def inside(utilisation: list[float], *, uuid: str | None = GPU, memory: int = 1000) -> list[Sample]:
    return [
        Sample(at=1e9 + at, source="nvml", device="A", utilisation=u, memory=memory, memory_total=2000, uuid=uuid)
        for at, u in enumerate(utilisation)
    ]


def outside(
    utilisation: list[float], *, job: float | None = None, other: float | None = None, memory: int = 1000
) -> list[Observation]:
    return [
        Observation(
            at=1e9 + at + 0.4, device=GPU, utilisation=u, memory=memory, job_utilisation=job, other_utilisation=other
        )
        for at, u in enumerate(utilisation)
    ]


@pytest.mark.parametrize(
    ("trace", "utilisation", "memory"),
    [
        (traces.resnet(), "pass", "pass"),
        (traces.saturated(60), "pass", "pass"),
        (traces.flicker(60), "fail", "pass"),
        (traces.throttled(60), "pass", "pass"),
    ],
    ids=["resnet", "saturated", "flicker", "throttled"],
)
def test_the_published_rules_over_traces_of_gpus(play: Play, trace: str, utilisation: str, memory: str) -> None:
    samples = played(play, trace, 60)
    assert result("gpu-utilisation", samples, []).result == utilisation
    assert result("gpu-memory", samples, []).result == memory


def test_a_gpu_that_was_lost_in_mid_run_has_samples_up_to_then(play: Play) -> None:
    assert len(played(play, traces.lost(after=12), 20)) == 12


def test_two_readers_of_one_gpu_agree() -> None:
    curve = [90.0, 95, 20, 99, 97] * 12
    found = result("gpu-agreement", inside(curve), outside([*curve[1:], 96]))
    assert (found.value, found.result) == (0.0, "pass")
    assert "6 windows" in found.detail


def test_readers_that_see_different_loads_raise_suspicion_with_the_difference() -> None:
    found = result("gpu-agreement", inside([97.0] * 60), outside([2.0] * 60))
    assert (found.value, found.limit, found.result) == (1.0, 0.1, "fail")
    assert "95 points apart" in found.detail


def test_readers_that_see_different_memory_raise_suspicion() -> None:
    found = result("gpu-agreement", inside([97.0] * 60, memory=1000), outside([97.0] * 60, memory=800))
    assert found.result == "fail"


def test_readers_that_name_two_devices_raise_suspicion_and_are_named() -> None:
    found = result("gpu-agreement", inside([97.0] * 60, uuid="GPU-2"), outside([97.0] * 60))
    assert (found.value, found.result) == ("two devices", "fail")
    assert "GPU-2" in found.detail


def test_one_bad_window_in_twenty_is_no_disagreement() -> None:
    curve = [97.0] * 200
    assert result("gpu-agreement", inside(curve), outside([*curve[:190], *[0.0] * 10])).result == "pass"


@pytest.mark.parametrize(
    ("samples", "seen"),
    [(inside([9.0] * 60), []), ([], outside([9.0] * 60)), (inside([9.0] * 60), outside([9.0] * 60)[:2])],
    ids=["no-readings", "no-samples", "too-few"],
)
def test_where_one_side_is_silent_nothing_is_said(samples: list[Sample], seen: list[Observation]) -> None:
    assert result("gpu-agreement", samples, seen).result == "not-applicable"


def test_a_cpus_samples_are_not_compared_with_a_gpu() -> None:
    cpu = [sample.model_copy(update={"source": "cpu"}) for sample in inside([50.0] * 60)]
    assert result("gpu-agreement", cpu, outside([50.0] * 60)).result == "not-applicable"


def test_a_load_of_others_is_told_apart_from_the_jobs() -> None:
    own = result("gpu-load", [], outside([95.0] * 20, job=93, other=2))
    assert own.result == "pass"
    others = result("gpu-load", [], outside([95.0] * 20, job=5, other=90))
    assert others.result == "fail"
    assert "5 % of the time" in others.detail
    assert "90 %" in others.detail


def test_a_job_that_did_nothing_on_the_gpu_raises_suspicion() -> None:
    assert result("gpu-load", [], outside([0.0] * 20, job=0, other=0)).result == "fail"


def test_a_driver_that_does_not_tell_whose_load_it_is_accuses_nobody() -> None:
    assert result("gpu-load", [], outside([95.0] * 20)).result == "not-applicable"


readings = st.lists(st.floats(0, 100), min_size=0, max_size=80)


@given(readings, readings, st.none() | st.floats(0, 100), st.none() | st.floats(0, 100))
def test_no_readings_whatever_decide_or_make_a_rule_stumble(
    ours: list[float], theirs: list[float], job: float | None, other: float | None
) -> None:
    for rule in ("gpu-agreement", "gpu-load"):
        assert result(rule, inside(ours), outside(theirs, job=job, other=other)).weight == "suspects"
