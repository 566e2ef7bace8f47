"""A drawing of a run in few numbers says what all its points say, wherever it begins, however wide its buckets are."""

from __future__ import annotations

import math
import random
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from tests.labapex_server.gateway.stage import Host, Run, a_run, queued_job

from labapex.protocol.frames import Ack
from labapex.protocol.records import column, uncolumn
from labapex_server.accounts.models import User
from labapex_server.telemetry import services, summaries
from labapex_server.telemetry.models import Frame, Log, Summary
from labapex_server.telemetry.stints import Part, parts
from labapex_server.telemetry.summaries import BIN, SPAN, Curve, curve
from labapex_server.telemetry.writer import Submission, writer

LENGTH = 3 * SPAN + 1000


def expected(losses: list[float], first: int, stop: int, width: int) -> tuple[list[Any], list[Any], list[int]]:
    least, greatest, missing = [], [], []
    for begin in range(first // width * width, stop, width):
        low = begin if width >= BIN else max(begin, first)
        bucket = losses[low : min(begin + width, stop)]
        finite = [loss for loss in bucket if math.isfinite(loss)]
        least.append(min(finite, default=None))
        greatest.append(max(finite, default=None))
        missing.append(len(bucket) - len(finite))
    return least, greatest, missing


def told(found: Curve) -> tuple[list[Any], list[Any], list[int]]:
    return found.least, found.greatest, found.missing


@pytest.fixture
def long_run(rig: Host, researcher: User) -> Run:
    """A run whose log went through the writer, with losses that are not finite among the others."""
    draw = random.Random(5)
    losses = [
        draw.choice([math.nan, math.inf, 1e308]) if draw.random() < 0.01 else draw.gauss(2, 1) for _ in range(LENGTH)
    ]
    job = queued_job(researcher, epochs=1, per_epoch=LENGTH, every=LENGTH, budget="20")
    run = a_run(job, rig, frame_losses=37, losses=losses)
    answers: list[object] = []
    for frame in run.executable.frames:
        services.submit(Submission(run.host.worker.pk, frame, answers.append))
    writer.stop()
    assert all(isinstance(said, Ack) for said in answers)
    return run


@pytest.mark.parametrize(
    ("first", "stop"), [(0, None), (0, LENGTH), (1, SPAN), (70, LENGTH - 3), (SPAN, 2 * SPAN), (5000, 5100)]
)
@pytest.mark.parametrize("buckets", [1, 40, 150, 100_000])
def test_a_chart_holds_the_extremes_of_all_its_points(
    long_run: Run, first: int, stop: int | None, buckets: int
) -> None:
    losses = long_run.executable.losses
    found = curve(parts(long_run.lease), first, stop, buckets)
    assert (found.first, found.stop, found.end) == (first, stop or LENGTH, LENGTH)
    assert told(found) == expected(losses, first, found.stop, found.width)
    assert all(
        a is None or a <= m <= b
        for a, m, b in zip(found.least, found.mean, found.greatest, strict=True)
        if m is not None
    )
    if found.width == 1:
        assert found.mean == [loss if math.isfinite(loss) else None for loss in losses[first : found.stop]]


def test_a_long_run_is_drawn_from_its_summaries_and_without_them_the_same(long_run: Run) -> None:
    assert list(Summary.objects.values_list("first", flat=True).order_by("first")) == [0, SPAN, 2 * SPAN]
    run = parts(long_run.lease)
    with CaptureQueriesContext(
        connection,
    ) as asked:
        before = curve(run, 0, None, 100)
    assert sum("losses" in query["sql"] for query in asked) == 1  # of the run's last iterations alone
    Summary.objects.all().delete()
    assert told(curve(run, 0, None, 100)) == told(before)


def test_where_another_host_went_on_each_iteration_counts_once(rig: Host, long_run: Run, monkeypatch: Any) -> None:
    """A log that is superseded from an iteration in the middle of a bin, and the next one that begins there."""
    first = long_run.lease.pk
    turn = SPAN + 21
    job = queued_job(long_run.lease.job.owner, epochs=1, per_epoch=LENGTH, every=LENGTH, budget="20", name="second")
    writer.forget()
    second = a_run(job, a_second_host(long_run), frame_losses=50).lease.pk
    log = Log.objects.create(lease_id=second, head=b"", next=turn)
    draw = random.Random(9)
    losses = [*long_run.executable.losses[:turn], *(draw.gauss(9, 1) for _ in range(turn, LENGTH))]
    for seq, begin in enumerate(range(turn, LENGTH, 100)):
        data = column(losses[begin : begin + 100])
        Frame.objects.create(
            log=log, seq=seq, first=begin, n=len(uncolumn(data)), prev=b"", hash=b"", payload=b"", losses=data, times=data,
            received_at=0,
        )  # fmt: skip
    Log.objects.filter(pk=log.pk).update(next=LENGTH)
    summaries.summarise(second, turn, LENGTH)
    run = (Part(first, turn, 1), Part(second))
    for begin, stop, buckets in ((0, LENGTH, 50), (turn - 5, turn + 5, 100), (SPAN, 3 * SPAN, 64)):
        found = curve(run, begin, stop, buckets)
        assert told(found) == expected(losses, begin, stop, found.width)


def a_second_host(run: Run) -> Host:
    from tests.labapex_server.gateway.stage import a_host

    return a_host(run.host.worker.owner, "second rig")


def test_a_run_without_a_point_is_an_empty_chart(run: Run) -> None:
    assert curve((), 0, None, 100) == Curve(0, 0, 1, 0, [], [], [], [])
    assert told(curve((Part(uuid4()),), 0, None, 100)) == ([], [], [])
