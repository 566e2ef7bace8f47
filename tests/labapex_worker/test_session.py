"""The session's decisions one by one, without spool and line. `test_mutants.py` takes each of them back in turn."""

from __future__ import annotations

import math

from tests.labapex_worker.chains import a_grant, a_key_request
from tests.labapex_worker.sessions import BEATS, greet, running, synced

from labapex.protocol.frames import (
    Failed,
    Greeting,
    Heartbeat,
    KeyRelease,
    Nonce,
    Open,
    Paused,
    Ready,
    Released,
    TrialPrepare,
)
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex_worker import effects
from labapex_worker.effects import Send
from labapex_worker.session import Session


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
