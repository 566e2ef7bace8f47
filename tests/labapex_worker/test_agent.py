"""Session and spool against a platform in memory; the line loses, doubles and breaks, the daemon dies."""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.labapex_worker.chains import a_chain, a_fin, a_frame, a_grant, a_key_request
from tests.labapex_worker.platform_double import Books, Held

from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import Message
from labapex.protocol.frames import (
    Ack,
    Data,
    Failed,
    Fin,
    FinAck,
    Grant,
    Greeting,
    KeyRelease,
    Nack,
    Nonce,
    Open,
    OpenStates,
    Ready,
    Released,
    Welcome,
    genesis,
)
from labapex.protocol.packing import pack
from labapex_worker import effects
from labapex_worker.agent import Agent, Errand, ToExecutable, ToPlatform
from labapex_worker.phases import Phase
from labapex_worker.spool import Spool
from labapex_worker.work import WINDOW

LOG = (Open, Data, Fin, Welcome, Ack, Nack, FinAck)
LATE = (Data, Fin, Ack, Nack, FinAck)  # a `Welcome` that is overtaken would tell of a platform that lost frames
LENGTH = 45  # frames, more than a window


class Line(RuleBasedStateMachine):
    """One lease. Whatever happens on the way, the platform ends with exactly the log that the executable made."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="labapex-line-")
        self.grant = a_grant()
        self.lease = self.grant.lease
        self.chain = a_chain(self.lease, LENGTH)
        self.made = 0  # frames that the executable has made
        self.acked = 0  # frames that it was told are kept, and that it forgot
        self.fin_acked = False
        self.books = Books()
        self.books.leases[self.lease] = Held(grant=self.grant)
        self.up: deque[Message] = deque()
        self.down: deque[Message] = deque()
        self.said: deque[Message] = deque()
        self.online = False
        self.next: int | None = None  # frame that comes after the last one sent
        self.now = 0.0
        self.agent = self.new_agent()
        self.do(self.tell(self.grant))
        self.do(self.agent.fetched(self.lease))
        self.do(self.agent.started(self.lease))
        self.hear_executable(a_key_request(self.lease))

    def new_agent(self) -> Agent:
        self.spool = Spool(Path(self.folder.name) / "s", quota=200)
        return Agent(self.spool)

    def tell(self, message: Message) -> list[Errand]:
        return self.agent.from_platform(pack(message), self.now)

    def do(self, errands: list[Errand]) -> None:
        for errand in errands:
            match errand:
                case ToPlatform(message):
                    if self.online:
                        self.sends(message)
                case ToExecutable(_, told):
                    self.executable_hears(told)
                case effects.SayHello():
                    self.down.extend(self.books.greet())

    def sends(self, message: Message) -> None:
        self.up.append(message)
        match message:
            case Open():
                self.next = None  # it is told where to go on
            case Data():
                assert self.next is None or message.seq <= self.next, "a frame is left out"
                assert message.seq < self.spool.leases()[0].base + WINDOW, (
                    "more is on its way than the window has room for"
                )
                self.next = message.seq + 1
            case Fin():
                assert message.seq == len(self.books.leases[self.lease].frames), "the end overtakes the log"

    # -- the executable ------------------------------------------------------------------------------------------------

    def hear_executable(self, message: Message) -> None:
        """What the executable says arrives in order, answers to it after what was said before."""
        self.said.append(message)
        if len(self.said) == 1:
            while self.said:
                self.do(self.agent.from_executable(self.lease, pack(self.said[0]), peer=7))
                self.said.popleft()

    def executable_hears(self, message: Message) -> None:
        match message:
            case Ack():
                assert message.seq < self.made
                assert message.head == self.chain[message.seq].hash
                self.acked = max(self.acked, message.seq + 1)
            case Nack():
                assert message.expected >= self.acked, "it is asked for what it was allowed to forget"
                self.resend(message.expected)
            case Welcome():
                assert message.seq >= self.acked
                assert message.head == (self.chain[message.seq - 1].hash if message.seq else genesis(self.lease))
                self.resend(message.seq)
            case FinAck():
                self.fin_acked = True

    def resend(self, first: int) -> None:
        for frame in self.chain[first : self.made]:
            self.hear_executable(frame)

    @precondition(lambda self: self.made < LENGTH)
    @rule(lost=st.booleans(), count=st.integers(1, 8))
    def makes_frames(self, lost: bool, count: int) -> None:
        for _ in range(min(count, LENGTH - self.made)):
            self.made += 1
            if not lost:
                self.hear_executable(self.chain[self.made - 1])

    @rule()
    def executable_reconnects(self) -> None:
        self.hear_executable(Open(lease=self.lease))
        if self.made == LENGTH:
            self.hear_executable(a_fin(self.lease, self.chain))

    # -- the line ------------------------------------------------------------------------------------------------------

    @rule()
    def connects(self) -> None:
        self.breaks()
        self.online = True
        self.do(self.agent.connected())
        self.down.append(Nonce(nonce=bytes(32)))

    @rule()
    def breaks(self) -> None:
        self.up.clear()
        self.down.clear()
        self.online = False
        self.do(self.agent.disconnected())

    @rule(
        count=st.integers(1, 50),
        fate=st.sampled_from(["arrives", "arrives", "arrives", "is lost", "is doubled", "is overtaken"]),
    )
    def carries(self, count: int, fate: str) -> None:
        for _ in range(count):
            if self.up:
                self.up_one(fate)
            if self.down:
                self.down_one(fate)

    def up_one(self, fate: str) -> None:
        message = self.up.popleft()
        if fate == "is overtaken" and isinstance(message, LATE):
            self.up.append(message)
            return
        times = {"is lost": 0, "is doubled": 2}.get(fate, 1) if isinstance(message, LOG) else 1
        for _ in range(times):
            self.down.extend(self.books.hear(pack(message)))

    def down_one(self, fate: str) -> None:
        message = self.down.popleft()
        if fate == "is overtaken" and isinstance(message, LATE):
            self.down.append(message)
            return
        times = {"is lost": 0, "is doubled": 2}.get(fate, 1) if isinstance(message, LOG) else 1
        for _ in range(times):
            self.do(self.tell(message))

    @rule(seconds=st.floats(0.1, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.agent.tick(self.now))

    @rule()
    def daemon_is_killed_and_started_again(self) -> None:
        self.breaks()
        self.spool.close()
        self.agent = self.new_agent()
        self.do(self.agent.restored())
        self.do(self.agent.started(self.lease))

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def the_platform_holds_a_beginning_of_the_log(self) -> None:
        frames = self.books.leases[self.lease].frames
        assert frames == self.chain[: len(frames)]

    @invariant()
    def what_the_executable_forgot_is_kept_somewhere(self) -> None:
        at_platform = len(self.books.leases[self.lease].frames)
        spooled = [frame.seq for frame in self.spool.frames(self.lease, 0, LENGTH)]
        assert set(range(self.acked)) <= set(range(at_platform)) | set(spooled)

    def teardown(self) -> None:
        if not hasattr(self, "agent"):
            return
        try:
            self.heal_and_compare()
        finally:
            self.spool.close()
            self.folder.cleanup()

    def heal_and_compare(self) -> None:
        if not self.online:  # a line that stands has to be mended by what is said on it
            self.connects()
        self.makes_frames(lost=False, count=LENGTH)
        for _ in range(100):
            while self.up or self.down:
                self.carries(count=50, fate="arrives")
            self.executable_reconnects()
            self.time_passes(1.0)
        held = self.books.leases[self.lease]
        row = self.spool.lease(self.lease)
        assert row is not None
        assert held.frames == self.chain
        assert self.acked == LENGTH
        assert self.fin_acked
        assert held.fin == a_fin(self.lease, self.chain)
        assert held.release is not None
        assert row.phase is Phase.CLOSED
        assert list(self.spool.frames(self.lease, 0, LENGTH)) == []
        self.do(self.tell(Released(lease=self.lease, reason="settled")))
        self.do(self.agent.discarded(self.lease))
        assert self.spool.leases() == []


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# -- single decisions --------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(Spool(tmp_path / "s", quota=1 << 20))


def tell(agent: Agent, message: Message, now: float = 0.0) -> list[Errand]:
    return agent.from_platform(pack(message), now)


def sent(errands: list[Errand]) -> list[Message]:
    return [errand.message for errand in errands if isinstance(errand, ToPlatform)]


def greeted(agent: Agent, *grants: Grant) -> list[Errand]:
    agent.connected()
    return tell(agent, Greeting(heartbeat_seconds=10, leases=tuple(grant.lease for grant in grants)))


def running(agent: Agent) -> Grant:
    grant = a_grant()
    greeted(agent)
    tell(agent, grant)
    agent.fetched(grant.lease)
    agent.started(grant.lease)
    return grant


def test_a_failure_is_reported_after_what_there_is_of_the_log(agent: Agent) -> None:
    grant = running(agent)
    frame = a_chain(grant.lease, 1)[0]
    assert sent(agent.from_executable(grant.lease, pack(frame), 1)) == [Open(lease=grant.lease)]
    assert [m for m in sent(agent.exited(grant.lease, "exit code 3")) if isinstance(m, Failed)] == []
    welcome = Welcome(lease=grant.lease, seq=0, next=0, head=genesis(grant.lease))
    assert sent(tell(agent, welcome)) == [frame]
    (failed,) = sent(tell(agent, Ack(lease=grant.lease, seq=0, head=frame.hash)))
    assert isinstance(failed, Failed)
    assert "exit code 3" in failed.reason


def test_an_executable_that_ends_after_its_log_is_complete_has_not_failed(agent: Agent) -> None:
    grant = running(agent)
    chain = a_chain(grant.lease, 1)
    agent.from_executable(grant.lease, pack(chain[0]), 1)
    agent.from_executable(grant.lease, pack(a_fin(grant.lease, chain)), 1)
    assert sent(agent.exited(grant.lease, "exit code 0")) == [Ready()], "the device is free for the next job"
    assert agent.session.works[grant.lease].phase is Phase.FINISHED


def test_a_log_whose_end_was_kept_is_complete_though_nobody_came_to_say_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", quota=1 << 20)
    grant = running(Agent(spool))
    chain = a_chain(grant.lease, 1)
    spool.append(chain[0])
    spool.finish(a_fin(grant.lease, chain))  # here the power fails
    agent = Agent(spool)
    agent.exited(grant.lease, "it was killed, the host was restarted, or its disk is full")
    assert sent(greeted(agent, grant)) == [Open(lease=grant.lease), Ready()]
    (lease,) = spool.leases()
    assert lease.phase is Phase.FINISHED


def test_a_fork_of_the_log_stops_the_lease_and_says_so(agent: Agent) -> None:
    grant = running(agent)
    agent.from_executable(grant.lease, pack(a_chain(grant.lease, 1)[0]), 1)
    errands = tell(agent, Welcome(lease=grant.lease, seq=1, next=2, head=bytes(32)))
    assert effects.Kill(grant.lease) in errands
    (failed,) = sent(errands)
    assert isinstance(failed, Failed)
    assert "differ" in failed.reason


@pytest.mark.parametrize("change", [{"head": bytes(32)}, {"seq": 7}])
def test_an_acknowledgement_that_does_not_fit_deletes_nothing_and_the_platform_is_asked_anew(
    agent: Agent, change: dict[str, object]
) -> None:
    grant = running(agent)
    frame = a_chain(grant.lease, 1)[0]
    agent.from_executable(grant.lease, pack(frame), 1)
    tell(agent, Welcome(lease=grant.lease, seq=0, next=0, head=genesis(grant.lease)))
    garbled = Ack(lease=grant.lease, seq=0, head=frame.hash).model_copy(update=change)
    (errand,) = tell(agent, garbled)
    assert isinstance(errand, effects.HangUp)
    assert agent.session.works[grant.lease].phase is Phase.RUNNING
    assert agent.session.works[grant.lease].base == 0


def test_a_platform_that_lost_acknowledged_frames_is_told_so(agent: Agent) -> None:
    grant = running(agent)
    frame = a_chain(grant.lease, 1)[0]
    agent.from_executable(grant.lease, pack(frame), 1)
    tell(agent, Welcome(lease=grant.lease, seq=1, next=2, head=frame.hash))
    (failed,) = sent(tell(agent, Welcome(lease=grant.lease, seq=0, next=0, head=genesis(grant.lease))))
    assert isinstance(failed, Failed)
    assert "lost frames" in failed.reason


def test_keys_are_asked_for_again_until_they_come_and_handed_out_again_on_demand(agent: Agent) -> None:
    grant = running(agent)
    request, release = a_key_request(grant.lease), KeyRelease(lease=grant.lease, sealed=b"x")
    assert sent(agent.from_executable(grant.lease, pack(request), 1)) == [request]
    agent.disconnected()
    assert sent(greeted(agent, grant)) == [request]
    assert tell(agent, release) == [ToExecutable(grant.lease, release)]
    assert tell(agent, release) == []
    assert agent.from_executable(grant.lease, pack(request), 1) == [ToExecutable(grant.lease, release)]


def test_keys_of_another_making_are_not_asked_for(agent: Agent) -> None:
    grant = running(agent)
    agent.from_executable(grant.lease, pack(a_key_request(grant.lease, 1)), 1)
    with pytest.raises(Tampered, match="second time"):
        agent.from_executable(grant.lease, pack(a_key_request(grant.lease, 2)), 1)


def test_only_the_process_that_asked_for_the_keys_may_speak_afterwards(agent: Agent) -> None:
    grant = running(agent)
    assert agent.may_speak(grant.lease, 1)
    agent.from_executable(grant.lease, pack(a_key_request(grant.lease)), 1)
    assert agent.may_speak(grant.lease, 1)
    assert not agent.may_speak(grant.lease, 2)


def test_an_executable_cannot_speak_for_another_lease(agent: Agent) -> None:
    grant = running(agent)
    with pytest.raises(Tampered, match="another lease"):
        agent.from_executable(grant.lease, pack(Open(lease=a_grant().lease)), 1)


def test_a_full_spool_is_answered_with_silence_and_mended_by_a_nack(tmp_path: Path) -> None:
    agent = Agent(Spool(tmp_path / "small", quota=8))
    grant = running(agent)
    chain = [a_frame(grant.lease, 0, 0, genesis(grant.lease), payload=bytes(8))]
    chain.append(a_frame(grant.lease, 1, 2, chain[0].hash, payload=bytes(8)))
    agent.from_executable(grant.lease, pack(chain[0]), 1)
    chain.append(a_frame(grant.lease, 2, 4, chain[1].hash, payload=bytes(8)))
    assert agent.from_executable(grant.lease, pack(chain[1]), 1) == []
    assert agent.from_executable(grant.lease, pack(chain[2]), 1) == [], "a gap that it made itself is no gap"
    errands = tell(agent, Welcome(lease=grant.lease, seq=1, next=2, head=chain[0].hash))
    assert ToExecutable(grant.lease, Nack(lease=grant.lease, expected=1)) in errands


def test_states_are_uploaded_for_a_lease_that_trains_or_has_finished(agent: Agent) -> None:
    grant = running(agent)
    challenge = OpenStates(lease=grant.lease, indices=(0, 3), deadline=5.0)
    assert tell(agent, challenge.model_copy(update={"lease": uuid4()})) == []
    assert tell(agent, challenge) == [effects.Upload(grant.lease, (0, 3), 5.0)]  # for another host to go on from
    chain = a_chain(grant.lease, 1)
    agent.from_executable(grant.lease, pack(chain[0]), 1)
    agent.from_executable(grant.lease, pack(a_fin(grant.lease, chain)), 1)
    assert tell(agent, challenge) == [effects.Upload(grant.lease, (0, 3), 5.0)]


def test_a_message_that_is_none_is_refused(agent: Agent) -> None:
    for data in (b"", b"\xc1", pack(Ready()), bytes(2 << 20)):
        with pytest.raises(MalformedInput):
            agent.from_platform(data, 0.0)
