"""What a script tells of its own stays within bounds, whatever it tells and however often."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from labapex import sealing
from labapex.protocol.records import MAX_NAME, MAX_SERIES, FrameBody
from labapex_runner.batch import FLUSH_RECORDS, Batch
from labapex_runner.series import BYTES_PER_SECOND, FREE_BYTES, POINT_BYTES, Allowance


def test_a_short_run_keeps_every_point_and_nothing_is_said() -> None:
    allowance = Allowance()
    assert all(allowance.admit({"loss": 0.5, "rate": 0.1}, now=0.0) == {"loss": 0.5, "rate": 0.1} for _ in range(500))
    assert allowance.notice() == ""


def test_a_series_that_is_told_rarely_is_not_thinned_with_one_that_floods() -> None:
    allowance = Allowance()
    kept = [
        allowance.admit({"flood": 0.0, **({"epoch": 1.0} if n % 1000 == 0 else {})}, n / 1000) for n in range(20_000)
    ]
    assert sum("epoch" in each for each in kept) == 20
    flooded = sum("flood" in each for each in kept)
    assert flooded == (FREE_BYTES + 20 * BYTES_PER_SECOND) // (POINT_BYTES + len("flood"))
    assert f"{20_000 - flooded} points of the script's series were left out" in allowance.notice()


def test_names_beyond_the_limit_are_left_out_and_counted() -> None:
    allowance = Allowance()
    for n in range(MAX_SERIES + 3):
        allowance.admit({str(n): 0.0}, now=0.0)
    assert allowance.admit({"0": 1.0, "one more": 1.0}, now=1.0) == {"0": 1.0}
    assert "4 points" in allowance.notice()


def test_of_two_points_of_one_iteration_the_later_one_counts() -> None:
    batch = Batch()
    batch.scalars(4, {"accuracy": 0.5}, now=0.0)
    batch.scalars(4, {"accuracy": 0.75}, now=0.0)
    batch.scalars(5, {"accuracy": 0.8}, now=0.0)
    assert batch.due_at is not None
    body = batch.take()
    assert body is not None
    (series,) = body.series
    assert (series.name, series.iterations) == ("accuracy", (4, 5))


@given(st.lists(st.dictionaries(st.integers(0, 99), st.integers(1, 3)), max_size=300))
@settings(max_examples=20, deadline=None)
def test_whatever_is_told_fits_into_frames(told: list[dict[int, int]]) -> None:
    """`told`: for each iteration, which names come how often."""
    allowance, batch, bodies = Allowance(), Batch(), list[FrameBody]()
    for step, names in enumerate([*told, *[dict.fromkeys(range(99), 3)] * FLUSH_RECORDS]):
        for name, times in names.items():
            for _ in range(times):
                values = {f"{name:02}" + "\U0001f600" * (MAX_NAME - 2): 1.0}
                batch.scalars(step, allowance.admit(values, now=0.0), now=0.0)
        batch.iteration(0.5, 0.0, now=0.0)
        if batch.full and (body := batch.take()) is not None:
            bodies.append(body)
    for seq, body in enumerate(bodies):
        sealing.seal_frame(bytes(32), lease=UUID(int=1), seq=seq, first=0, prev=bytes(32), body=body)
        assert FrameBody.model_validate(body.model_dump()) == body
    assert len({series.name for body in bodies for series in body.series}) <= MAX_SERIES
