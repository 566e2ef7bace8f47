"""The session's decisions on a log: what is sent of it, what is sent again, and its end."""

from __future__ import annotations

from tests.labapex_worker.chains import a_chain, a_fin
from tests.labapex_worker.sessions import complete, running, synced

from labapex.protocol.frames import (
    Grant,
    Nack,
    Open,
)
from labapex_worker import effects
from labapex_worker.effects import Send, SendFrames
from labapex_worker.phases import Phase
from labapex_worker.session import Session
from labapex_worker.work import RETRY_SECONDS, WINDOW


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
