"""What the owner allows is decided by a pure function: for every limit, every reading and every time of day."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from labapex.errors import UsageError
from labapex.protocol.hours import MAX_WINDOWS, Hours
from labapex_worker.limits import (
    BUSY_LOAD,
    Go,
    Limits,
    Patience,
    Pause,
    Readings,
    decide,
    in_utc,
    read_hours,
)

minutes = st.integers(0, 24 * 60 - 1)
windows = st.tuples(minutes, minutes).filter(lambda ends: ends[0] != ends[1])
some_hours = st.lists(windows, min_size=1, max_size=4).map(
    lambda found: tuple(Hours(begin=begin, end=end) for begin, end in found)
)
figures = st.none() | st.floats(0, 2000)
all_limits = st.builds(
    Limits,
    hours=st.just(()) | some_hours,
    hard_hours=st.booleans(),
    idle_only=st.booleans(),
    max_power_watts=st.none() | st.floats(1, 1000),
    max_temperature=st.none() | st.floats(1, 150),
    grace_seconds=st.floats(0, 600),
)
all_readings = st.builds(
    Readings, power_watts=figures, temperature=figures, others=st.none() | st.integers(0, 9), load=figures
)
times = st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1))


def at(minute: int) -> datetime:
    return datetime(2026, 3, 1, minute // 60, minute % 60)


@given(all_readings, times)
def test_an_owner_without_limits_takes_work_always(readings: Readings, now: datetime) -> None:
    assert decide(Limits(), readings, now) == Go()


@given(all_limits, all_readings, times)
def test_work_is_taken_where_no_limit_is_passed_and_nowhere_else(
    limits: Limits, readings: Readings, now: datetime
) -> None:
    passed = [
        limits.max_power_watts is not None and not (readings.power_watts or 5000) <= limits.max_power_watts
        if readings.power_watts != 0
        else False,
        limits.max_temperature is not None and not (readings.temperature or 5000) <= limits.max_temperature
        if readings.temperature != 0
        else False,
        bool(limits.hours) and not any(hours.hold(now.time()) for hours in limits.hours),
        limits.idle_only and (bool(readings.others) or (readings.load or 0) > BUSY_LOAD),
    ]
    assert isinstance(decide(limits, readings, now), Pause) is any(passed)


@given(all_limits, all_readings, times, st.floats(1, 1000))
def test_a_limit_that_is_added_never_lets_more_work_in(
    limits: Limits, readings: Readings, now: datetime, power: float
) -> None:
    assume(limits.max_power_watts is None)
    if decide(limits, readings, now) != Go():
        stricter = limits.model_copy(update={"max_power_watts": power})
        assert decide(stricter, readings, now) != Go()


@given(windows, minutes)
def test_hours_over_midnight_are_what_the_hours_of_the_day_leave(window: tuple[int, int], minute: int) -> None:
    begin, end = window
    now = time(minute // 60, minute % 60)
    assert Hours(begin=begin, end=end).hold(now) is not Hours(begin=end, end=begin).hold(now)


def test_hours_begin_with_their_first_minute_and_end_before_their_last() -> None:
    night = Limits(hours=read_hours("22:00-07:00"))
    allowed = [minute for minute in range(24 * 60) if decide(night, Readings(), at(minute)) == Go()]
    assert allowed == [*range(7 * 60), *range(22 * 60, 24 * 60)]


@given(some_hours, minutes, st.integers(-14 * 60, 14 * 60))
def test_the_hours_that_clients_are_told_are_the_same_moments_by_utc(
    hours: tuple[Hours, ...], minute: int, offset: int
) -> None:
    here = datetime(2026, 1, 1, minute // 60, minute % 60, tzinfo=timezone(timedelta(minutes=offset)))
    told = in_utc(hours, here)
    assert [each.hold(here.astimezone(UTC).time()) for each in told] == [each.hold(here.time()) for each in hours]


@given(some_hours)
def test_hours_are_read_as_they_are_written(hours: tuple[Hours, ...]) -> None:
    assert read_hours(",".join(map(str, hours))) == hours


@pytest.mark.parametrize(
    "text",
    ["22", "22:00", "25:00-07:00", "22:60-07:00", "22:00-22:00", "22:00-07:00,", "a-b", "1:00-2:00," * MAX_WINDOWS],
)
def test_what_are_no_hours_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"22:00-07:00|always"):
        read_hours(text)


@pytest.mark.parametrize("text", ["", "always", " Always "])
def test_always_is_no_limit(text: str) -> None:
    assert read_hours(text) == ()


def test_too_many_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="at most"):
        read_hours(",".join(["01:00-02:00"] * (MAX_WINDOWS + 1)))


@given(st.floats(0, 600), st.floats(0, 2000), st.floats(0, 2000))
def test_a_job_is_given_back_when_the_heat_has_lasted_the_grace(grace: float, first: float, later: float) -> None:
    hot = decide(Limits(max_temperature=80, grace_seconds=grace), Readings(temperature=81), at(0))
    patience = Patience()
    assert patience.ran_out(hot, first) is (grace == 0)
    assert patience.ran_out(hot, first + later) is (first + later - first >= grace)


def test_a_gpu_that_cools_down_in_between_has_all_its_grace_again() -> None:
    limits, patience = Limits(max_temperature=80, grace_seconds=60), Patience()
    hot, cool = (decide(limits, Readings(temperature=degrees), at(0)) for degrees in (81, 80))
    assert [patience.ran_out(hot, now) for now in (0.0, 59.0)] == [False, False]
    assert not patience.ran_out(cool, 59.5)
    assert not patience.ran_out(hot, 100.0)
    assert patience.ran_out(hot, 160.0)


def test_a_job_outlives_soft_hours_and_not_hard_ones() -> None:
    day = {"hours": read_hours("08:00-18:00")}
    night = datetime(2026, 3, 1, 3)
    assert not Patience().ran_out(decide(Limits(**day), Readings(), night), 1e9)
    assert Patience().ran_out(decide(Limits(**day, hard_hours=True), Readings(), night), 0)


def test_others_on_the_host_keep_new_work_away_and_never_end_what_runs() -> None:
    busy = decide(Limits(idle_only=True), Readings(others=1), at(0))
    assert busy == Pause("the GPU is in use by 1 process of others")
    assert decide(Limits(idle_only=True), Readings(load=0.51), at(0)) != Go()
    assert decide(Limits(idle_only=True), Readings(load=0.5, others=0), at(0)) == Go()


def test_a_gpu_that_does_not_tell_what_is_limited_gets_no_new_work_and_keeps_what_runs() -> None:
    assert decide(Limits(max_power_watts=300), Readings(), at(0)) == Pause(
        "the GPU does not tell its power, which is limited to 300 W"
    )


def test_all_reasons_are_told_and_the_least_patient_decides() -> None:
    limits = Limits(hours=read_hours("08:00-18:00"), hard_hours=True, max_temperature=80, idle_only=True)
    decision = decide(limits, Readings(temperature=90, others=2), datetime(2026, 3, 1, 3) + timedelta(minutes=1))
    assert isinstance(decision, Pause)
    assert decision.give_back_after == 0
    for words in ("90 °C, over the limit of 80 °C", "it works 08:00-18:00", "2 processes of others"):
        assert words in decision.reason
