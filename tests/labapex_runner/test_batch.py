"""Batches: a frame is due at 50 records or after 250 ms, and always fits on the wire."""

from __future__ import annotations

import math
from uuid import UUID

from labapex import sealing
from labapex.protocol.records import MAX_CONSOLE, Console, Sample, uncolumn
from labapex_runner.batch import FLUSH_RECORDS, FLUSH_SECONDS, Batch


def test_nothing_is_due_while_there_is_nothing() -> None:
    batch = Batch()
    assert batch.due_at is None
    assert batch.take() is None


def test_the_first_record_starts_the_clock_and_taking_stops_it() -> None:
    batch = Batch()
    batch.iteration(1.0, 5.0, now=10.0)
    batch.iteration(math.nan, 6.0, now=10.1)
    assert batch.due_at == 10.0 + FLUSH_SECONDS
    body = batch.take()
    assert body is not None
    assert uncolumn(body.times) == [5.0, 6.0]
    assert math.isnan(uncolumn(body.losses)[1])
    assert batch.due_at is None


def test_fifty_iterations_are_a_frame() -> None:
    batch = Batch()
    for step in range(FLUSH_RECORDS):
        assert not batch.full
        batch.iteration(float(step), 0.0, now=0.0)
    assert batch.full


def test_a_full_batch_of_the_largest_records_fits_into_a_frame() -> None:
    batch = Batch()
    while not batch.full:
        batch.console(Console(stream="stdout", text="\U0001f600" * MAX_CONSOLE), now=0.0)
    body = batch.take()
    assert body is not None
    sealing.seal_frame(bytes(32), lease=UUID(int=1), seq=0, first=0, prev=bytes(32), body=body)


def test_many_small_records_do_not_overflow_the_body() -> None:
    batch = Batch()
    sample = Sample(at=0, source="cpu", device="cpu", utilisation=0, memory=0, memory_total=0)
    while not batch.full:
        batch.sample(sample, now=0.0)
    body = batch.take()
    assert body is not None
    assert len(body.samples) <= 256
