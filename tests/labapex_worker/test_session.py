"""The session's decisions one by one, without spool and line. `test_mutants.py` takes each of them back in turn."""

from __future__ import annotations

import math

import pytest
from tests.labapex_worker.chains import a_chain, a_fin, a_grant, a_key_request

from labapex.protocol.devices import Observation
from labapex.protocol.frames import (
    MAX_OBSERVATIONS,
    Failed,
    Fin,
    Grant,
    Greeting,
    Heartbeat,
    KeyRelease,
    Nack,
    Nonce,
    Observed,
    Open,
    OpenChunks,
    OpenStates,
    Paused,
    Ready,
    Refusal,
    Released,
    Stop,
    TrialPrepare,
)
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex_worker import effects
from labapex_worker.effects import Effect, Send, SendFrames
from labapex_worker.phases import Phase
from labapex_worker.session import RETRY_SECONDS, WINDOW, Session

BEATS = 1000.0  # seconds between heartbeats, so that none of them is among what a tick sends again


@pytest.fixture
def session() -> Session:
    return Session()


def greet(session: Session, *grants: Grant, now: float = 0.0) -> list[Effect]:
    session.connected()
    return session.greeting(Greeting(heartbeat_seconds=BEATS, leases=tuple(grant.lease for grant in grants)), now)


def running(session: Session) -> Grant:
    grant = a_grant()
    greet(session)
    session.grant(grant)
    session.fetched(grant.lease)
    session.started(grant.lease)
    return grant


def synced(session: Session, frames: int) -> Grant:
    """The platform holds nothing yet; the first window of frames is on its way."""
    grant = running(session)
    session.spooled(grant.lease, frames)
    assert session.welcomed(grant.lease, 0, 0.0) == [SendFrames(grant.lease, 0, min(frames, WINDOW))]
    return grant


def complete(session: Session, frames: int = 2) -> tuple[Grant, Fin]:
    """A log that the platform holds but for its end, which is on its way."""
    grant = synced(session, frames)
    fin = a_fin(grant.lease, a_chain(grant.lease, frames))
    session.finished(fin)
    assert session.acknowledged(grant.lease, frames, 0.0) == [Send(fin)]
    return grant, fin


# -- the connection ----------------------------------------------------------------------------------------------------


def test_nothing_but_the_signed_hello_is_said_before_the_greeting(session: Session) -> None:
    assert session.connected() == []
    assert session.tick(10 * BEATS) == []
    assert session.nonce(Nonce(nonce=bytes(32))) == [effects.SayHello(bytes(32), ())]


def test_a_platform_that_begins_twice_is_hung_up_on(session: Session) -> None:
    greet(session)
    assert [type(effect) for effect in session.nonce(Nonce(nonce=bytes(32)))] == [effects.HangUp]
    again = session.greeting(Greeting(heartbeat_seconds=BEATS, leases=()), 0.0)
    assert [type(effect) for effect in again] == [effects.HangUp]


def test_hello_names_what_is_in_hand_but_not_what_is_over(session: Session) -> None:
    first = running(session)
    session.released(Released(lease=first.lease, reason="settled"))
    second = a_grant()
    session.grant(second)
    session.connected()
    assert session.nonce(Nonce(nonce=bytes(32))) == [effects.SayHello(bytes(32), (second.lease,))]


def test_heartbeats_name_the_leases_in_the_platforms_rhythm(session: Session) -> None:
    grant = running(session)
    assert session.tick(0.99 * BEATS) == []
    assert session.tick(BEATS) == [Send(Heartbeat(leases=(grant.lease,)))]
    assert session.tick(1.01 * BEATS) == []


def test_heartbeats_do_not_keep_a_failed_lease(session: Session) -> None:
    grant = running(session)
    assert Send(Heartbeat(leases=(grant.lease,))) in session.tick(BEATS)
    session.failed(grant.lease, "it fell over")
    assert Send(Heartbeat(leases=())) in session.tick(2 * BEATS)


def test_while_there_is_no_line_nothing_is_sent_and_on_the_next_one_all_is_asked_anew(session: Session) -> None:
    grant = synced(session, 3)
    session.disconnected()
    assert session.spooled(grant.lease, 4) == []
    assert session.key_requested(a_key_request(grant.lease)) == []
    assert session.hold("too hot") == []
    session.connected()
    assert session.welcomed(grant.lease, 0, 0.0) == []
    session.disconnected()
    said = greet(session, grant)
    assert said == [Send(a_key_request(grant.lease)), Send(Open(lease=grant.lease)), Send(Paused(reason="too hot"))]
    session.key_release(KeyRelease(lease=grant.lease, sealed=b"x"))
    session.disconnected()
    assert greet(session, grant) == [Send(Open(lease=grant.lease)), Send(Paused(reason="too hot"))]


def test_a_platform_that_comes_back_hears_of_its_leases_within_three_heartbeats(session: Session) -> None:
    assert session.longest_pause == math.inf, "no platform has told its rhythm yet"
    running(session)
    session.disconnected()
    assert session.longest_pause == 3 * BEATS


def test_a_lease_that_the_greeting_does_not_name_is_deleted(session: Session) -> None:
    grant = running(session)
    session.disconnected()
    *_, deletes = greet(session)
    assert isinstance(deletes, effects.Discard), "and its process may still hold the device: no work is asked for"
    assert session.discarded(grant.lease) == [Send(Ready())]


def test_work_is_asked_for_once_until_a_grant_comes(session: Session) -> None:
    assert greet(session) == [Send(Ready())]
    first, second = a_grant(), a_grant()
    session.grant(first)
    assert session.discarded(first.lease) == [Send(Ready())]
    assert session.discarded(second.lease) == []


def test_a_worker_that_is_held_asks_for_no_work_and_says_why_on_each_connection(session: Session) -> None:
    session.hold("its owner paused it")
    for _ in range(2):
        assert greet(session) == [Send(Paused(reason="its owner paused it"))]
    assert session.hold("its owner paused it") == []
    assert session.hold("too hot") == [Send(Paused(reason="too hot"))]
    grant = a_grant()
    assert effects.Fetch(grant.lease) in session.grant(grant), "what crosses a pause is worked on"


def test_what_room_there_is_for_a_job_is_told_whenever_it_is_another(session: Session) -> None:
    large, small = (Limits(memory=memory << 30, disk=1 << 40, processes=100) for memory in (8, 2))
    session.go(None, large)
    assert greet(session) == [Send(Ready(room=large))]
    assert session.go(None, large) == []
    assert session.go(None, small) == [Send(Ready(room=small))]


def test_the_hours_in_which_it_works_are_told_whenever_they_are_others(session: Session) -> None:
    night, day = (Hours(begin=22 * 60, end=7 * 60),), (Hours(begin=8 * 60, end=18 * 60),)
    session.go(None, None, night)
    assert greet(session) == [Send(Ready(hours=night))]
    assert session.go(None, None, night) == []
    assert session.go(None, None, day) == [Send(Ready(hours=day))]


def test_a_job_that_there_is_no_room_for_is_declined_and_one_that_runs_is_not(session: Session) -> None:
    greet(session)
    for fetched in (False, True):
        grant = a_grant()
        session.grant(grant)
        if fetched:
            session.fetched(grant.lease)
        said = session.declined(grant.lease, "it asks for more")
        assert said[-2:] == [Send(Failed(lease=grant.lease, reason="it asks for more", declined=True)), Send(Ready())]
    grant = running(session)
    assert Send(Failed(lease=grant.lease, reason="too late")) in session.declined(grant.lease, "too late")


def test_a_worker_that_may_go_on_asks_for_work_at_its_owners_price(session: Session) -> None:
    session.hold("too hot")
    greet(session)
    assert session.go(5) == [Send(Ready(price_per_hour=5))]
    assert session.go(5) == []
    assert session.go(7) == [Send(Ready(price_per_hour=7))]


def test_a_new_price_waits_for_the_next_job_where_one_runs(session: Session) -> None:
    grant = running(session)
    assert session.go(7) == []
    session.failed(grant.lease, "it fell over")
    assert session.exited(grant.lease, "exit code 1") == [Send(Ready(price_per_hour=7))]


def test_what_ended_with_the_daemon_goes_on_where_it_stopped(session: Session) -> None:
    granted, released = a_grant(), a_grant()
    session.grant(released)
    session.released(Released(lease=released.lease, reason="settled"))
    session.grant(granted)
    after = type(session)(works=session.works)
    assert after.restored() == [effects.Discard(released.lease, "settled"), effects.Fetch(granted.lease)]


def test_a_speed_trial_waits_for_no_job_and_is_declined_beside_one(session: Session) -> None:
    grant = running(session)
    (declined,) = session.measure(TrialPrepare.model_construct(trial=grant.job))
    assert isinstance(declined, effects.Decline)


# -- leases ------------------------------------------------------------------------------------------------------------


def test_a_grant_that_comes_twice_brings_a_new_token_and_no_new_download(session: Session) -> None:
    greet(session)
    grant = a_grant()
    assert session.grant(grant) == [effects.Accept(grant), effects.Fetch(grant.lease)]
    assert session.grant(grant) == [effects.Accept(grant)]


def test_a_grant_without_a_free_slot_is_handed_back(session: Session) -> None:
    running(session)
    second = a_grant()
    said = session.grant(second)
    assert Send(Failed(lease=second.lease, reason="the worker has no free slot")) in said
    assert effects.Fetch(second.lease) not in said


def test_each_phase_is_remembered_before_it_is_acted_on(session: Session) -> None:
    greet(session)
    grant = a_grant()
    lease = grant.lease
    session.grant(grant)
    assert session.fetched(lease) == [effects.Move(lease, Phase.STARTING), effects.Start(lease)]
    assert session.fetched(lease) == [], "it would be started twice"
    assert session.started(lease) == [effects.Move(lease, Phase.RUNNING)]
    assert session.finished(a_fin(lease, [])) == [effects.Move(lease, Phase.FINISHED), Send(Open(lease=lease))]
    assert session.finacked(lease) == [effects.Move(lease, Phase.CLOSED)]
    assert session.finacked(lease) == []
    gone = [effects.Move(lease, Phase.RELEASED, "settled"), effects.Discard(lease, "settled")]
    assert session.released(Released(lease=lease, reason="settled")) == gone
    assert session.released(Released(lease=lease, reason="settled")) == []
    assert session.failed(lease, "too late") == []


def test_a_failure_is_remembered_then_its_process_killed_then_it_is_said_once(session: Session) -> None:
    grant = running(session)
    first, *rest = session.failed(grant.lease, "x" * 3000)
    assert first == effects.Move(grant.lease, Phase.FAILED, "x" * 2000)
    assert rest[0] == effects.Kill(grant.lease)
    assert session.failed(grant.lease, "again") == []
    assert session.finished(a_fin(grant.lease, [])) == []
    assert session.works[grant.lease].phase is Phase.FAILED


def test_a_failure_is_said_again_on_the_next_connection(session: Session) -> None:
    grant = running(session)
    session.exited(grant.lease, "exit code 1")
    reason = session.works[grant.lease].reason
    assert "exit code 1" in reason
    assert greet(session, grant) == [Send(Failed(lease=grant.lease, reason=reason)), Send(Ready())]


def test_a_job_that_is_given_back_fails_with_the_reason_unless_its_training_is_over(session: Session) -> None:
    grant = running(session)
    given = session.give_back("the GPU is too hot")
    assert effects.Kill(grant.lease) in given
    assert Send(Failed(lease=grant.lease, reason="the GPU is too hot")) in given
    assert session.give_back("the GPU is too hot") == []
    trained = type(session)()
    session, grant = trained, running(trained)
    session.finished(a_fin(grant.lease, []))
    assert session.give_back("the GPU is too hot") == []


def test_a_process_that_should_not_be_there_is_killed(session: Session) -> None:
    stranger = a_grant()
    assert session.started(stranger.lease) == [effects.Kill(stranger.lease)]
    failed = running(session)
    session.failed(failed.lease, "it fell over")
    assert session.started(failed.lease) == [effects.Kill(failed.lease)]


def test_a_process_that_ends_behind_its_complete_log_changes_nothing(session: Session) -> None:
    grant = running(session)
    session.finished(a_fin(grant.lease, []))
    assert session.exited(grant.lease, "exit code 1") == [Send(Ready())]


def test_keys_are_asked_for_until_they_come_kept_before_they_are_told_and_told_again_on_demand(
    session: Session,
) -> None:
    grant = running(session)
    request, release = a_key_request(grant.lease), KeyRelease(lease=grant.lease, sealed=b"x")
    assert session.key_release(release) == [], "nobody asked for them"
    assert session.key_requested(request) == [Send(request)]
    assert session.key_release(release) == [effects.KeepRelease(release), effects.Tell(grant.lease, release)]
    assert session.key_release(release) == []
    assert session.key_requested(request) == [effects.Tell(grant.lease, release)]


def test_chunks_are_shown_only_of_a_finished_log(session: Session) -> None:
    grant = running(session)
    asked = OpenChunks(lease=grant.lease, number=7, indices=(0, 1, 2), deadline=5.0)
    assert session.open_chunks(asked) == []
    session.finished(a_fin(grant.lease, []))
    assert session.open_chunks(asked) == [effects.UploadChunks(grant.lease, 7, (0, 1, 2), 5.0)]


def test_no_state_is_uploaded_of_a_lease_that_has_failed(session: Session) -> None:
    grant = running(session)
    session.failed(grant.lease, "it fell over")
    assert session.open_states(OpenStates(lease=grant.lease, indices=(0,), deadline=5.0)) == []


def reading(at: float) -> Observation:
    return Observation(at=at, device="GPU-1", utilisation=90, memory=1000)


def test_readings_of_the_device_are_sent_ten_at_a_time_and_the_rest_at_the_end(session: Session) -> None:
    grant = running(session)
    said = [session.observed(grant.lease, reading(at)) for at in range(13)]
    assert [n for n, found in enumerate(said) if found] == [9]
    assert said[9] == [Send(Observed(lease=grant.lease, readings=tuple(reading(at) for at in range(10))))]
    rest = Send(Observed(lease=grant.lease, readings=tuple(reading(at) for at in range(10, 13))))
    assert rest in session.finished(a_fin(grant.lease, []))
    assert [session.observed(grant.lease, reading(at)) for at in range(20)] == 20 * [[]], "behind the end of training"


def test_readings_wait_for_a_line_and_the_oldest_go(session: Session) -> None:
    grant = running(session)
    session.disconnected()
    assert [session.observed(grant.lease, reading(at)) for at in range(200)] == 200 * [[]]
    greet(session, grant)
    last = tuple(reading(at) for at in range(201 - MAX_OBSERVATIONS, 201))
    assert session.observed(grant.lease, reading(200)) == [Send(Observed(lease=grant.lease, readings=last))]


def test_a_log_that_the_platform_refuses_is_not_sent_to_its_end(session: Session) -> None:
    grant = synced(session, 3)
    refusal = Refusal(code="bad-frame", message="does not open", fatal=False, lease=grant.lease)
    said = session.refusal(refusal)
    assert [type(effect.message).__name__ for effect in said if isinstance(effect, Send)] == ["Failed"]


def test_a_failure_waits_for_the_log_unless_the_platform_refuses_the_log(session: Session) -> None:
    grant = synced(session, 3)
    assert not any(isinstance(effect, Send) for effect in session.failed(grant.lease, "it fell over"))
    refusal = Refusal(code="bad-frame", message="does not open", fatal=False, lease=grant.lease)
    assert session.refusal(refusal) == [Send(Failed(lease=grant.lease, reason="it fell over"))]


def test_a_fatal_refusal_ends_the_lease_and_the_connection(session: Session) -> None:
    grant = running(session)
    said = session.refusal(Refusal(code="bad-frame", message="does not open", fatal=True, lease=grant.lease))
    assert effects.Kill(grant.lease) in said
    assert isinstance(said[-1], effects.HangUp)


def test_an_end_that_was_kept_by_a_daemon_that_did_not_come_to_say_so_is_the_end(session: Session) -> None:
    grant = running(session)
    session.works[grant.lease].fin = a_fin(grant.lease, [])
    assert session.exited(grant.lease, "it was killed")[0] == effects.Move(grant.lease, Phase.FINISHED)


def test_a_refusal_takes_nothing_back_of_a_lease_whose_log_is_closed(session: Session) -> None:
    grant, _ = complete(session)
    session.finacked(grant.lease)
    assert session.refusal(Refusal(code="late", message="over", fatal=False, lease=grant.lease)) == []


# -- a job that its client stops ---------------------------------------------------------------------------------------


def test_a_stopped_run_is_killed_and_its_states_are_kept_and_shown(session: Session) -> None:
    grant = synced(session, 5)
    killed = session.stop(Stop(lease=grant.lease))
    assert killed[0] == effects.Move(grant.lease, Phase.STOPPED, "stopped by its client")
    assert killed[1] == effects.Kill(grant.lease)
    assert session.stop(Stop(lease=grant.lease)) == []
    assert session.exited(grant.lease, "killed") == [Send(Ready(price_per_hour=None, room=None, hours=()))]
    chunks = OpenChunks(lease=grant.lease, number=1, indices=(0,), deadline=5.0)
    assert session.open_chunks(chunks) == [effects.UploadChunks(grant.lease, 1, (0,), 5.0)]
    states = OpenStates(lease=grant.lease, indices=(0,), deadline=5.0)
    assert session.open_states(states) == [effects.Upload(grant.lease, (0,), 5.0)]
    assert session.released(Released(lease=grant.lease, reason="settled"))[1] == effects.Discard(grant.lease, "settled")


def test_nothing_more_is_sent_of_a_stopped_runs_log(session: Session) -> None:
    grant = synced(session, 5)
    session.stop(Stop(lease=grant.lease))
    assert session.spooled(grant.lease, 9) == []
    assert session.finished(a_fin(grant.lease, a_chain(grant.lease, 9))) == []
    late = Refusal(code="not-running", message="it is over", fatal=False, lease=grant.lease)
    assert session.refusal(late) == []
    session.disconnected()
    assert not [each for each in greet(session, grant) if isinstance(each, Send) and isinstance(each.message, Open)]
    assert session.tick(RETRY_SECONDS) == []


def test_a_run_that_is_found_alive_after_it_was_stopped_is_killed(session: Session) -> None:
    grant = running(session)
    session.stop(Stop(lease=grant.lease))
    assert session.started(grant.lease) == [effects.Kill(grant.lease)]


def test_a_run_that_ends_just_when_it_is_stopped_is_stopped(session: Session) -> None:
    grant, _ = complete(session)
    assert session.stop(Stop(lease=grant.lease))[0] == effects.Move(grant.lease, Phase.STOPPED, "stopped by its client")


def test_a_lease_that_is_unknown_or_was_never_started_is_not_stopped(session: Session) -> None:
    greet(session)
    grant = a_grant()
    assert session.stop(Stop(lease=grant.lease)) == []
    session.grant(grant)
    assert session.stop(Stop(lease=grant.lease)) == []


# -- the log -----------------------------------------------------------------------------------------------------------


def test_frames_go_out_in_a_window_each_once(session: Session) -> None:
    grant = synced(session, 3 * WINDOW)
    assert session.spooled(grant.lease, 3 * WINDOW + 1) == []
    assert session.acknowledged(grant.lease, 10, 1.0) == [SendFrames(grant.lease, WINDOW, WINDOW + 10)]
    assert session.acknowledged(grant.lease, 9, 1.0) == [], "an older one that was overtaken"
    assert session.works[grant.lease].base == 10


def test_what_the_platform_holds_already_is_not_sent(session: Session) -> None:
    grant = running(session)
    assert session.spooled(grant.lease, 3) == [Send(Open(lease=grant.lease))]
    assert session.spooled(grant.lease, 4) == [], "it asks once"
    assert session.welcomed(grant.lease, 2, 0.0) == [SendFrames(grant.lease, 2, 4)]
    assert session.acknowledged(grant.lease, 4, 0.0) == []
    assert session.welcomed(grant.lease, 3, 0.0) == [], "an older one that was overtaken"
    assert session.works[grant.lease].cursor == 4


def test_an_acknowledgement_that_overtakes_a_gap_ends_the_gap(session: Session) -> None:
    grant = synced(session, WINDOW)
    session.nacked(Nack(lease=grant.lease, expected=0))
    session.works[
        grant.lease
    ].cursor = 1  # of what was to be sent again one frame went out, and the platform holds more
    assert session.acknowledged(grant.lease, 5, 0.0) == [SendFrames(grant.lease, 5, WINDOW)]


def test_a_gap_is_filled_once_from_where_it_begins(session: Session) -> None:
    grant = synced(session, 5)
    gap = Nack(lease=grant.lease, expected=2)
    assert session.nacked(gap) == [SendFrames(grant.lease, 2, 5)]
    assert session.nacked(gap) == [], "a burst of complaints is answered once"
    assert session.acknowledged(grant.lease, 1, 0.0) == []
    assert session.nacked(gap) == [SendFrames(grant.lease, 2, 5)], "progress was made: it is a new gap"
    session.welcomed(grant.lease, 1, 0.0)
    assert session.nacked(gap) == [SendFrames(grant.lease, 2, 5)]


def test_a_gap_that_cannot_be_is_none(session: Session) -> None:
    grant = synced(session, 5)
    session.acknowledged(grant.lease, 3, 0.0)
    assert session.nacked(Nack(lease=grant.lease, expected=2)) == []
    assert session.nacked(Nack(lease=grant.lease, expected=5)) == []


def test_a_gap_behind_what_was_sent_leaves_nothing_out(session: Session) -> None:
    grant = synced(session, 3 * WINDOW)
    assert session.nacked(Nack(lease=grant.lease, expected=WINDOW + 3)) == []
    assert session.acknowledged(grant.lease, 10, 1.0) == [SendFrames(grant.lease, WINDOW, WINDOW + 10)]


def test_the_end_follows_the_last_acknowledgement_once(session: Session) -> None:
    grant = synced(session, 2)
    fin = a_fin(grant.lease, a_chain(grant.lease, 2))
    assert session.finished(fin) == [effects.Move(grant.lease, Phase.FINISHED)]
    assert session.acknowledged(grant.lease, 2, 0.0) == [Send(fin)]
    assert session.finished(fin) == []
    assert session.welcomed(grant.lease, 2, 0.0) == [Send(fin)], "the platform says that it has no end yet"


def test_the_end_of_a_log_that_is_there_already_is_sent_at_once(session: Session) -> None:
    grant = synced(session, 2)
    session.acknowledged(grant.lease, 2, 0.0)
    fin = a_fin(grant.lease, a_chain(grant.lease, 2))
    assert session.finished(fin) == [effects.Move(grant.lease, Phase.FINISHED), Send(fin)]


def waits(session: Session) -> Grant:
    """Asked what it holds, the platform has not answered."""
    grant = running(session)
    session.spooled(grant.lease, 3)
    return grant


def test_where_no_answer_comes_it_is_asked_again(session: Session) -> None:
    for unanswered in ("open", "frames", "fin"):
        asked_again(type(session)(), unanswered)


def asked_again(session: Session, unanswered: str) -> None:
    match unanswered:
        case "open":
            grant = waits(session)
        case "frames":
            grant = synced(session, 3)
        case _:
            grant, fin = complete(session)
    assert session.tick(1.0) == []
    assert session.tick(0.9 + RETRY_SECONDS * (unanswered == "open")) == []
    assert session.tick(1.0 + RETRY_SECONDS) == [Send(Open(lease=grant.lease))]
    assert session.tick(1.1 + RETRY_SECONDS) == [], "it has its time to answer"
    again = session.welcomed(grant.lease, session.works[grant.lease].base, 2.0 + RETRY_SECONDS)
    assert again == [Send(fin) if unanswered == "fin" else SendFrames(grant.lease, 0, 3)]


def test_progress_gives_the_platform_its_time_anew(session: Session) -> None:
    grant = synced(session, 3)
    session.tick(0.0)
    session.acknowledged(grant.lease, 1, RETRY_SECONDS - 1)
    assert session.tick(RETRY_SECONDS) == []


def test_where_everything_is_acknowledged_nothing_is_asked(session: Session) -> None:
    grant = synced(session, 3)
    session.acknowledged(grant.lease, 3, 0.0)
    session.tick(0.0)
    assert session.tick(10 * RETRY_SECONDS) == []
    assert session.spooled(grant.lease, 4) == [SendFrames(grant.lease, 3, 4)]


def test_frames_that_are_made_while_it_is_asked_anew_wait_for_the_answer(session: Session) -> None:
    grant = synced(session, 3)
    session.tick(0.0)
    session.tick(RETRY_SECONDS)
    assert session.spooled(grant.lease, 4) == []
