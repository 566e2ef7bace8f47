"""A session on its way: greeted, with a lease that runs, with a log that is sent, with one that is complete."""

from __future__ import annotations

from tests.labapex_worker.chains import a_chain, a_fin, a_grant

from labapex.protocol.frames import (
    Fin,
    Grant,
    Greeting,
)
from labapex_worker.effects import Effect, Send, SendFrames
from labapex_worker.session import Session
from labapex_worker.work import WINDOW

BEATS = 1000.0  # seconds between heartbeats, so that none of them is among what a tick sends again


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
