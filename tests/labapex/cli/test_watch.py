from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as Terminal
from tests.labapex.memory_platform import Chapter, MemoryPlatform, rule

from labapex.cli.output import clean, counted, credits, duration, headline, size
from labapex.cli.watch import Curve, LiveView, Watch, sparkline
from labapex.protocol.records import Console, Sample
from labapex.protocol.spec import CREDIT, JobSpec, micro_credits
from labapex.protocol.states import JobState

SPEC = JobSpec.model_validate({"script": "train.py", "epochs": 3, "budget": 10})


def watched(platform: MemoryPlatform, *chapters: Chapter) -> Watch:
    platform.story = list(chapters)
    job = platform.jobs[platform.add(SPEC).id]
    watch = Watch(job.view)
    for number in range(len(chapters)):
        watch.feed(platform._events(job, str(number)))
    return watch


def drawn(watch: Watch, width: int = 100) -> str:
    terminal = Terminal(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with LiveView(terminal) as view:
        view.show(watch, [])
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def test_the_live_view_shows_progress_loss_device_cost_rules_and_console(platform: MemoryPlatform) -> None:
    gpu = Sample(at=1, source="nvml", device="NVIDIA H200", utilisation=93, memory=2**30, memory_total=141 * 2**30)
    text = drawn(
        watched(
            platform,
            Chapter(losses=(2.0, 1.0, 0.5), samples=(gpu,), console=(Console(stream="stdout", text="hello\n"),)),
            Chapter(rules=(rule("log-chain"),)),
        )
    )
    for part in (
        "running",
        "3/12",
        "epoch 1/3",
        "ETA 5s",
        "0.5000",
        "GPU NVIDIA H200",
        "93 %",
        "of 10",
        "log-chain",
        "hello",
    ):
        assert part in text


def test_a_cpus_utilisation_never_passes_for_a_gpus(platform: MemoryPlatform) -> None:
    cpu = Sample(at=1, source="cpu", device="EPYC", utilisation=50, memory=1, memory_total=2)
    text = drawn(watched(platform, Chapter(samples=(cpu,))))
    assert "CPU (no NVIDIA driver on this host)" in text
    assert "GPU" not in text


def test_a_new_lease_forgets_the_points_of_the_lost_one(platform: MemoryPlatform) -> None:
    watch = watched(platform, Chapter(losses=(9.0, 8.0)), Chapter(losses=(2.0,), restarted=True))
    assert (watch.losses.count, watch.losses.last) == (1, 2.0)


def test_what_was_told_before_is_not_counted_twice(platform: MemoryPlatform) -> None:
    platform.story = [Chapter(losses=(3.0, 2.0))]
    job = platform.jobs[platform.add(SPEC).id]
    watch = Watch(job.view)
    for _ in range(2):
        watch.feed(platform._events(job, ""))
    assert watch.losses.count == 2


def test_rules_that_are_told_again_replace_what_was_told(platform: MemoryPlatform) -> None:
    watch = watched(platform, Chapter(rules=(rule("pev"),)), Chapter(rules=(rule("pev", "fail"), rule("vmo"))))
    assert watch.rules == {"pev": "fail", "vmo": "pass"}


def test_a_loss_that_is_not_finite_is_called_that(platform: MemoryPlatform) -> None:
    assert "not finite" in drawn(watched(platform, Chapter(losses=(1.0, None))))


def test_lost_contact_is_not_failure(platform: MemoryPlatform) -> None:
    watch = watched(platform, Chapter(losses=(1.0,)))
    watch.job = watch.job.model_copy(update={"lost_contact": True})
    assert "lost contact with the worker" in drawn(watch)


@pytest.mark.parametrize("width", [20, 40, 200])
def test_the_view_fits_any_terminal(platform: MemoryPlatform, width: int) -> None:
    assert drawn(watched(platform, Chapter(losses=tuple(float(i) for i in range(900)))), width)


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=400), st.integers(1, 80))
def test_a_curve_of_any_length_keeps_its_mean_in_bounded_memory(values: list[float | None], width: int) -> None:
    curve = Curve(resolution=16)
    for value in values:
        curve.add(value)
    assert curve.count == len(values)
    assert len(curve._buckets) <= 16
    assert sum(n for _, n in curve._buckets) == sum(v is not None for v in values)
    assert sum(total for total, _ in curve._buckets) == pytest.approx(sum(v for v in values if v is not None), abs=1e-3)
    assert len(curve.means(width)) <= width


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32), max_size=50))
def test_a_sparkline_has_one_character_a_value(values: list[float | None]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    assert line.count("×") == sum(v is None for v in values)


@given(st.text(), st.sampled_from(["\x1b[2J", "\x9b31m", "\x1b]52;c;aGk=\x07", "\x00", "\u202e", "\x08"]), st.text())
def test_no_control_character_survives(before: str, evil: str, after: str) -> None:
    text = clean(before + evil + after)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 or c == "\u202e" for c in text)


@given(st.integers(0, 10**15))
def test_credits_are_written_exactly(micro: int) -> None:
    assert micro_credits(credits(micro)) == micro
    assert "E" not in credits(micro)


def test_people_read_sizes_durations_and_headlines() -> None:
    assert [size(n) for n in (5, 2048, 3 * 2**30)] == ["5 B", "2.0 KiB", "3.0 GiB"]
    assert [duration(s) for s in (5, 185, 7620)] == ["5s", "3m 05s", "2h 07m"]
    assert headline("Traceback (most recent call last):\n  x\nValueError: 3\n") == "ValueError: 3"
    assert headline("first\nsecond") == "first"
    assert credits(CREDIT) == "1"
    assert [counted(n, "file") for n in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert JobState.VERIFIED.ended
