"""The session's decisions on a lease: from its grant to its release, and what goes wrong between."""

from __future__ import annotations

from tests.labapex_worker.chains import a_chain, a_fin, a_grant, a_key_request
from tests.labapex_worker.sessions import complete, greet, running, synced

from labapex.protocol.devices import Observation
from labapex.protocol.frames import (
    MAX_OBSERVATIONS,
    Failed,
    KeyRelease,
    Observed,
    Open,
    OpenChunks,
    OpenStates,
    Ready,
    Refusal,
    Released,
    Stop,
)
from labapex_worker import effects
from labapex_worker.effects import Send
from labapex_worker.phases import Phase
from labapex_worker.session import Session
from labapex_worker.work import RETRY_SECONDS


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
