"""How much of the process one connection may use: rates, and what is in flight."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
from hypothesis import given
from tests.labapex_server.gateway.agent import PATIENCE

from labapex_server.gateway.limits import BURST_SECONDS, BYTES_IN_FLIGHT, FRAMES_IN_FLIGHT, Bucket, InFlight

AMOUNTS = st.floats(0, 500)
PAUSES = st.floats(0, 10)


@given(rate=st.floats(1, 1e6), takes=st.lists(st.tuples(PAUSES, AMOUNTS), min_size=1, max_size=50))
def test_who_waits_as_told_takes_no_more_than_a_burst_and_the_rate(
    rate: float, takes: list[tuple[float, float]]
) -> None:
    now, taken = 0.0, 0.0
    bucket = Bucket(rate, lambda: now)
    for pause, amount in takes:
        now += pause
        now += bucket.take(amount)
        taken += amount
        assert taken <= rate * (BURST_SECONDS + now) * (1 + 1e-9) + 1e-6


@given(takes=st.lists(AMOUNTS, min_size=1, max_size=50))
def test_who_stays_below_the_rate_never_waits(takes: list[float]) -> None:
    now = 0.0
    bucket = Bucket(100.0, lambda: now)
    for amount in takes:
        assert bucket.take(amount) <= max(0.0, amount / 100.0 - BURST_SECONDS) + 1e-6
        now += amount / 100.0


@given(sizes=st.lists(st.integers(0, BYTES_IN_FLIGHT // 8), min_size=1, max_size=400), done=st.data())
def test_what_is_in_flight_stays_within_its_bounds_and_nobody_waits_for_ever(
    sizes: list[int], done: st.DataObject
) -> None:
    async def play() -> None:
        flight = InFlight()
        sent: list[int] = []

        async def reader() -> None:
            for size in sizes:
                await flight.room()
                flight.add(size)
                sent.append(size)
                assert flight.frames <= FRAMES_IN_FLIGHT
                assert flight.bytes < BYTES_IN_FLIGHT + max(sizes)
            await flight.empty()

        reading = asyncio.create_task(reader())
        answered = 0
        while answered < len(sizes):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(sent) > answered, "the reader waits though nothing is in flight"
            for _ in range(done.draw(st.integers(1, len(sent) - answered))):
                flight.done(sent[answered])
                answered += 1
        async with asyncio.timeout(PATIENCE):
            await reading
        assert (flight.frames, flight.bytes) == (0, 0)

    asyncio.run(play())
