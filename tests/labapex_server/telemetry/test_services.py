"""The log of a lease in the database: committed before it is acknowledged, once, in order, by its worker only."""

from __future__ import annotations

import math
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from tests.labapex_server.gateway.stage import Host, Run, a_host, a_run, queued_job

from labapex.protocol.canonical import digest
from labapex.protocol.frames import Ack, Data, FinAck, Nack, Open, genesis
from labapex.protocol.records import MAX_SERIES, Console, Series, column
from labapex.protocol.states import JobState, LeaseState
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Refused
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import charts, services
from labapex_server.telemetry import writer as writers
from labapex_server.telemetry.charts import Cursor
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.telemetry.services import LogRefused, NotWritten
from labapex_server.telemetry.signals import progressed
from labapex_server.telemetry.writer import Answer, Submission, TryLater, Writer


def ingest(run: Run, frame: Data) -> Ack | Nack:
    return services.ingest(run.host.worker.pk, frame)


def ingest_all(run: Run, frames: list[Data]) -> None:
    """All at once, as a connection hands them in."""
    done = threading.Semaphore(0)
    answers: list[Answer] = []

    def answer(said: Answer) -> None:
        answers.append(said)
        done.release()

    for frame in frames:
        services.submit(Submission(run.host.worker.pk, frame, answer))
    for _ in frames:
        done.acquire()
    assert all(isinstance(said, Ack) for said in answers), answers


def test_a_whole_log_is_stored_bit_for_bit(run: Run) -> None:
    ingest_all(run, run.executable.frames)
    assert services.losses(run.lease) == run.executable.losses
    assert len(services.times(run.lease)) == 14
    assert [leaf.record.step for leaf in services.leaves(run.lease)] == run.executable.contract.leaf_steps()
    assert [leaf.digest for leaf in services.leaves(run.lease)] == [
        digest(leaf.record) for leaf in services.leaves(run.lease)
    ]
    assert len(services.samples(run.lease)) == len(run.executable.frames)
    assert [bytes(f.payload) for f in Frame.objects.order_by("seq")] == [f.payload for f in run.executable.frames]


def test_an_acknowledged_frame_is_in_the_database(run: Run) -> None:
    for number, frame in enumerate(run.executable.frames):
        assert ingest(run, frame) == Ack(lease=run.lease.pk, seq=number, head=frame.hash)
        assert Frame.objects.count() == number + 1
        assert bytes(Log.objects.get().head) == frame.hash


def test_a_frame_sent_again_is_stored_once(run: Run) -> None:
    for _ in range(3):
        ingest(run, run.executable.frames[0])
    assert Frame.objects.count() == 1


def test_a_gap_is_asked_for_and_nothing_stored(run: Run) -> None:
    assert ingest(run, run.executable.frames[3]) == Nack(lease=run.lease.pk, expected=0)
    assert not Frame.objects.exists()


def test_a_new_process_goes_on_where_the_old_one_stopped(run: Run) -> None:
    for number, frame in enumerate(run.executable.frames):
        assert isinstance(ingest(run, frame), Ack)
        if number % 2:
            writers.writer.forget()
    assert services.losses(run.lease) == run.executable.losses


def test_two_processes_that_write_the_same_log_store_each_frame_once(run: Run) -> None:
    here, there = Writer(), Writer()
    answers: list[Answer] = []
    for frame in run.executable.frames:
        for each in (here, there):
            each.write([Submission(run.host.worker.pk, frame, answers.append)])
    assert all(isinstance(said, Ack) for said in answers), answers
    assert services.losses(run.lease) == run.executable.losses
    assert Frame.objects.count() == len(run.executable.frames)


def test_a_group_is_one_transaction_and_few_queries(run: Run, researcher: User, host: User) -> None:
    other = a_run(queued_job(researcher), a_host(host, "second"))
    writer = Writer()
    for each in (run, other):
        writer.write([Submission(each.host.worker.pk, each.executable.frames[0], lambda said: None)])
    group = [
        Submission(each.host.worker.pk, frame, lambda said: None)
        for frames in zip(run.executable.frames[1:], other.executable.frames[1:], strict=True)
        for each, frame in zip((run, other), frames, strict=True)
    ]
    with CaptureQueriesContext(connection) as queries:
        writer.write(group)
    assert len([q for q in queries if q["sql"].startswith("BEGIN")]) <= 2
    assert len(queries) <= 10, [q["sql"] for q in queries]
    assert Frame.objects.count() == len(run.executable.frames) + len(other.executable.frames)


def test_one_lease_that_cannot_be_written_does_not_spoil_another(
    run: Run, researcher: User, host: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = a_run(queued_job(researcher), a_host(host, "second"))
    real = writers.load

    def broken(lease: uuid.UUID) -> Any:
        if lease == other.lease.pk:
            raise OSError("the disk is full")
        return real(lease)

    monkeypatch.setattr(writers, "load", broken)
    answers: dict[uuid.UUID, Answer] = {}

    def submission(each: Run) -> Submission:
        lease = each.lease.pk
        return Submission(each.host.worker.pk, each.executable.frames[0], lambda said: answers.update({lease: said}))

    Writer().write([submission(run), submission(other)])
    assert isinstance(answers[run.lease.pk], Ack)
    assert answers[other.lease.pk] == TryLater()


def test_a_frame_of_another_workers_lease_is_refused(run: Run, cheat: User) -> None:
    stranger = a_host(cheat, "stranger")
    with pytest.raises(LogRefused) as refused:
        services.ingest(stranger.worker.pk, run.executable.frames[0])
    assert refused.value.code == "wrong-worker"
    assert not refused.value.breach
    with pytest.raises(LogRefused):
        services.welcome(stranger.worker.pk, Open(lease=run.lease.pk))
    with pytest.raises(LogRefused):
        services.finish(stranger.worker.pk, run.executable.fin())


def test_a_lease_given_up_for_dead_takes_no_more_frames(run: Run) -> None:
    ingest(run, run.executable.frames[0])
    Lease.objects.update(expires_at=clock.after(-1))
    assert marketplace.expire_silent(clock.now()) == 1
    with pytest.raises(LogRefused) as refused:
        ingest(run, run.executable.frames[1])
    assert refused.value.code == "not-running"
    assert not refused.value.breach
    assert ingest(run, run.executable.frames[0]) == Ack(lease=run.lease.pk, seq=0, head=run.executable.frames[0].hash)


def test_frames_prolong_the_lease(run: Run) -> None:
    soon = clock.after(1)
    Lease.objects.update(expires_at=soon)
    ingest(run, run.executable.frames[0])
    assert Lease.objects.get().expires_at > soon


def test_a_log_beyond_its_allowance_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "FREE_BYTES", 1000)
    monkeypatch.setattr(writers, "BYTES_PER_SECOND", 0)
    run.executable.frames.clear()
    line = Console(stream="stdout", text="x" * 300)
    assert isinstance(ingest(run, run.executable.append([], first=0, console=(line,))), Ack)
    frame = run.executable.append([], first=0, console=(line, line))
    with pytest.raises(LogRefused) as refused:
        ingest(run, frame)
    assert refused.value.code == "flood"


def test_a_nul_in_the_console_is_stored_as_a_replacement(run: Run) -> None:
    run.executable.frames.clear()
    ingest(run, run.executable.append([1.0], first=0, console=(Console(stream="stderr", text="a\0b"),)))
    assert services.events(run.lease.job, "").console[0].text == "a\N{REPLACEMENT CHARACTER}b"


def test_a_failing_database_is_said_and_the_writer_lives_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(writers, "_insert", lambda *_: 1 / 0)
        with pytest.raises(NotWritten):
            ingest(run, run.executable.frames[0])
    assert not Frame.objects.exists()
    assert not Log.objects.filter(seq__gt=0).exists()
    assert isinstance(ingest(run, run.executable.frames[0]), Ack)


def test_progress_is_told_once_a_group_after_the_commit(run: Run) -> None:
    told: list[tuple[uuid.UUID, int]] = []

    def listen(*, job_id: uuid.UUID, **_: Any) -> None:
        told.append((job_id, Frame.objects.count()))

    progressed.connect(listen)
    try:
        Writer().write([Submission(run.host.worker.pk, f, lambda said: None) for f in run.executable.frames])
    finally:
        progressed.disconnect(listen)
    assert told == [(run.lease.job_id, len(run.executable.frames))]


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_complete_log_hands_its_job_on(run: Run) -> None:
    ingest_all(run, run.executable.frames)
    for _ in range(2):  # the acknowledgement may get lost
        assert services.finish(run.host.worker.pk, run.executable.fin()) == FinAck(lease=run.lease.pk)
    run.lease.refresh_from_db()
    assert run.lease.state == LeaseState.FINISHED
    assert run.lease.job.state == JobState.CHALLENGED
    log = Log.objects.get()
    assert log.finished
    assert bytes(log.fin_signature or b"") == run.executable.fin().signature


def test_an_end_before_all_frames_asks_for_them(run: Run) -> None:
    assert services.finish(run.host.worker.pk, run.executable.fin()) == Nack(lease=run.lease.pk, expected=0)
    ingest(run, run.executable.frames[0])
    assert services.finish(run.host.worker.pk, run.executable.fin()) == Nack(lease=run.lease.pk, expected=1)


def test_an_end_signed_by_another_key_is_refused(run: Run) -> None:
    ingest_all(run, run.executable.frames)
    with pytest.raises(LogRefused) as refused:
        services.finish(run.host.worker.pk, run.executable.fin().model_copy(update={"signature": bytes(64)}))
    assert refused.value.code == "signature"
    assert not Log.objects.get().finished


def test_a_finished_log_does_not_grow(run: Run) -> None:
    ingest_all(run, run.executable.frames)
    services.finish(run.host.worker.pk, run.executable.fin())
    last = len(run.executable.frames) - 1
    again = Ack(lease=run.lease.pk, seq=last, head=run.executable.frames[last].hash)
    assert ingest(run, run.executable.frames[2]) == again
    more = run.executable.append([], first=14)
    with pytest.raises(LogRefused):
        ingest(run, more)
    assert Frame.objects.count() == last + 1


def test_a_welcome_says_what_is_held(run: Run) -> None:
    opening = Open(lease=run.lease.pk)
    empty = services.welcome(run.host.worker.pk, opening)
    assert (empty.seq, empty.next, empty.head) == (0, 0, genesis(run.lease.pk))
    ingest_all(run, run.executable.frames[:2])
    held = services.welcome(run.host.worker.pk, opening)
    assert (held.seq, held.next, held.head) == (2, 8, run.executable.frames[1].hash)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_following_the_cursor_brings_every_point_once(run: Run) -> None:
    cursor, losses, console = "", [], []
    for frame in run.executable.frames:
        ingest(run, frame)
        events = services.events(run.lease.job, cursor)
        assert events.first == len(losses) or not events.losses
        losses += events.losses
        console += events.console
        cursor = events.cursor
    assert losses == run.executable.losses
    assert len(console) == len(run.executable.frames)
    assert services.events(run.lease.job, cursor).losses == ()


def told(name: str, points: dict[int, float]) -> Series:
    return Series(name=name, iterations=tuple(points), values=column(list(points.values())))


def test_series_of_the_script_are_told_by_name_each_point_once(run: Run) -> None:
    run.executable.frames.clear()
    both = (told("rate", {0: 0.1, 1: 0.1}), told("accuracy <b>", {0: math.nan}))
    ingest(run, run.executable.append([1.0, 1.0], first=0, series=both))
    first = services.events(run.lease.job, "")
    assert [(s.name, s.iterations, s.values) for s in first.series] == [
        ("rate", (0, 1), (0.1, 0.1)),
        ("accuracy <b>", (0,), (None,)),
    ]
    ingest(run, run.executable.append([], first=2, series=(told("rate", {2: 0.3}),)))
    ingest(run, run.executable.append([1.0], first=2, series=(told("rate", {2: 0.2, 3: 0.4}),)))
    (rate,) = services.events(run.lease.job, first.cursor).series
    assert (rate.iterations, rate.values) == ((2, 3), (0.2, 0.4))


def test_the_number_of_series_is_known_to_a_new_process_too(run: Run) -> None:
    run.executable.frames.clear()
    series = tuple(told(str(n), {0: 1.0}) for n in range(MAX_SERIES))
    ingest(run, run.executable.append([], first=0, series=series))
    writers.writer.forget()
    with pytest.raises(LogRefused) as refused:
        ingest(run, run.executable.append([], first=0, series=(told("one more", {0: 1.0}),)))
    assert refused.value.code == "body"


def test_of_a_lost_hosts_series_counts_what_came_before_another_one_went_on() -> None:
    extras = {"series": [{"name": "rate", "iterations": [3, 5, 6, 7], "values": [0.3, None, 0.6, 0.7]}]}
    (kept,) = charts.Piece.of(0, 3, b"", extras, stop=6).series
    assert (kept.iterations, kept.values) == ((3, 5, 6), (0.3, None, 0.6))


def test_a_page_is_bounded_and_the_next_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "PAGE_POINTS", 6)
    ingest_all(run, run.executable.frames)
    cursor, pages = "", []
    while (events := services.events(run.lease.job, cursor)).cursor != cursor:
        pages.append(events.losses)
        cursor = events.cursor
    assert len(pages) > 2
    assert [loss for page in pages for loss in page] == run.executable.losses


def test_a_loss_that_is_not_finite_is_none_for_a_page_and_exact_for_the_verifier(rig: Host, researcher: User) -> None:
    run = a_run(queued_job(researcher), rig, losses=[math.nan, math.inf, *[0.25] * 12])
    ingest_all(run, run.executable.frames)
    assert services.events(run.lease.job, "").losses[:3] == (None, None, 0.25)
    assert column(services.losses(run.lease)) == column(run.executable.losses)


def test_a_cursor_of_an_earlier_lease_begins_again(run: Run, rig: Host) -> None:
    ingest(run, run.executable.frames[0])
    cursor = services.events(run.lease.job, "").cursor
    Lease.objects.update(expires_at=clock.after(-1))
    marketplace.expire_silent(clock.now())
    again = a_run(run.lease.job, rig)
    events = services.events(again.lease.job, cursor)
    assert events.restarted
    assert (events.first, events.losses) == (0, ())
    assert not services.events(again.lease.job, events.cursor).restarted


def test_a_job_without_a_lease_has_a_page(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    events = services.events(job, "")
    assert (events.losses, events.rules, events.restarted) == ((), (), False)
    assert not services.events(job, events.cursor).restarted
    assert jobs.find(researcher, job.pk) == job


@pytest.mark.parametrize(
    "text", ["x", "::", "1:2:3", f"{uuid.UUID(int=1)}:-1:0", f"{uuid.UUID(int=1)}:{2**70}:0", "a" * 5000]
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        Cursor.parse(text)


def test_a_cursor_survives_being_written_and_read() -> None:
    for cursor in (Cursor(), Cursor(uuid.uuid4(), 17, 3)):
        assert Cursor.parse(str(cursor)) == cursor


def test_leaves_carry_the_time_at_which_they_came(run: Run) -> None:
    before = clock.now().timestamp()
    ingest_all(run, run.executable.frames)
    assert all(before <= leaf.received_at <= clock.now().timestamp() for leaf in Leaf.objects.all())


def test_a_run_that_logs_no_iteration_for_long_has_stalled(run: Run, settings: Any) -> None:
    released = run.lease.key_released_at
    assert released is not None
    ingest_all(run, run.executable.frames[:1])
    told = Frame.objects.get()
    later = datetime.fromtimestamp(told.received_at, tz=UTC) + timedelta(seconds=settings.LABAPEX.stall_seconds)
    assert services.stalled(later - timedelta(seconds=1)) == []
    assert services.stalled(later + timedelta(seconds=1)) == [run.lease]
    Job.objects.update(iteration_seconds=settings.LABAPEX.stall_seconds)  # a job whose iterations take that long
    assert services.stalled(later + timedelta(seconds=1)) == []


def test_a_stalled_run_is_given_up_and_its_job_waits_for_another_worker(run: Run) -> None:
    assert marketplace.give_up(run.lease, "no new iteration for too long")
    job = Job.objects.get(pk=run.lease.job_id)
    assert job.state == JobState.QUEUED
    assert "no new iteration" in job.reason
    assert not marketplace.give_up(run.lease, "again")
