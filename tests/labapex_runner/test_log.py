"""The sending end of a log: whatever the socket does, the receiver ends with the exact log."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labapex import sealing
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import Message
from labapex.protocol.frames import Ack, Data, Fin, FinAck, Nack, Open, Welcome, fin_bytes, genesis
from labapex.protocol.records import FrameBody, column, uncolumn
from labapex_runner.log import Log

LEASE, KEY = UUID(int=5), bytes(32)
PRIVATE, PUBLIC = sealing.new_signing_keys()


def body(start: int, count: int) -> FrameBody:
    values = [float(i) for i in range(start, start + count)]
    return FrameBody(losses=column(values), times=column(values))


class Receiver:
    """Stores frames in order and acknowledges what it stored, as the protocol says."""

    def __init__(self) -> None:
        self.frames: list[Data] = []
        self.losses: list[float] = []
        self.fin: Fin | None = None

    @property
    def head(self) -> bytes:
        return self.frames[-1].hash if self.frames else genesis(LEASE)

    def answer(self, message: Message) -> Message:
        if isinstance(message, Open):
            return Welcome(lease=LEASE, seq=len(self.frames), next=len(self.losses), head=self.head)
        if isinstance(message, Data):
            if message.seq > len(self.frames):
                return Nack(lease=LEASE, expected=len(self.frames))
            if message.seq == len(self.frames):
                assert (message.prev, message.first) == (self.head, len(self.losses))
                self.losses += uncolumn(sealing.open_frame(KEY, message).losses)
                self.frames.append(message)
            return Ack(lease=LEASE, seq=len(self.frames) - 1, head=self.head)
        assert isinstance(message, Fin)
        if message.seq != len(self.frames):
            return Nack(lease=LEASE, expected=len(self.frames))
        signed = fin_bytes(lease=LEASE, seq=message.seq, total=message.total, head=message.head)
        sealing.verify(PUBLIC, signed, message.signature)
        assert (message.total, message.head) == (len(self.losses), self.head)
        self.fin = message
        return FinAck(lease=LEASE)


def sign(message: bytes) -> bytes:
    return sealing.sign(PRIVATE, message)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_is_lost_doubled_or_reordered_the_receiver_ends_with_the_exact_log(data: st.DataObject) -> None:
    log, receiver = Log(LEASE, KEY), Receiver()
    made = 0
    there: list[Message] = []
    back: list[Message] = []
    log.connected()
    for step in data.draw(st.lists(st.sampled_from(["append", "send", "take", "hear", "cut", "retry"]), max_size=60)):
        if step == "append":
            count = data.draw(st.integers(0, 3))
            log.append(body(made, count))
            made += count
        elif step == "send":
            there += log.outgoing(data.draw(st.sampled_from([1, 700, 10_000])))
        elif step == "cut":
            there, back = [], []
            log.connected()
        elif step == "retry":
            log.retry()
        else:
            queue = there if step == "take" else back
            if not queue:
                continue
            place = data.draw(st.integers(0, len(queue) - 1))
            fate = data.draw(st.sampled_from(["once", "lost", "twice"]))
            message = queue[place] if fate == "twice" else queue.pop(place)
            if fate == "lost":
                continue
            if step == "take":
                back.append(receiver.answer(message))
            else:
                log.receive(message)  # type: ignore[arg-type]
    log.finish(sign)
    for _ in range(4):  # the line is sound again, but what was on its way still arrives
        log.retry()
        while there := [*there, *log.outgoing(10_000)]:
            back += [receiver.answer(message) for message in there]
            there = []
            for message in back:
                log.receive(message)  # type: ignore[arg-type]
            back = []
    assert log.complete
    assert log.drained
    assert receiver.losses == [float(i) for i in range(made)]
    assert receiver.fin is not None


def test_frames_stay_until_they_are_acknowledged_with_their_hash() -> None:
    log = Log(LEASE, KEY)
    for number in range(3):
        log.append(body(number, 1))
    log.connected()
    assert [type(m) for m in log.outgoing(10_000)] == [Open]
    log.receive(Welcome(lease=LEASE, seq=0, next=0, head=genesis(LEASE)))
    sent = [m for m in log.outgoing(10_000) if isinstance(m, Data)]
    assert [m.seq for m in sent] == [0, 1, 2]
    with pytest.raises(Tampered):
        log.receive(Ack(lease=LEASE, seq=1, head=sent[2].hash))
    log.receive(Ack(lease=LEASE, seq=1, head=sent[1].hash))
    log.connected()
    log.receive(Welcome(lease=LEASE, seq=2, next=2, head=sent[1].hash))
    assert [m for m in log.outgoing(10_000) if isinstance(m, Data)] == [sent[2]]


def test_a_receiver_that_claims_what_was_never_made_is_not_believed() -> None:
    log = Log(LEASE, KEY)
    log.append(body(0, 1))
    log.connected()
    for claim in (
        Welcome(lease=LEASE, seq=2, next=2, head=bytes(32)),
        Welcome(lease=LEASE, seq=1, next=1, head=bytes(32)),
        Ack(lease=LEASE, seq=1, head=bytes(32)),
        Nack(lease=LEASE, expected=2),
        FinAck(lease=LEASE),
        Nack(lease=UUID(int=6), expected=0),
    ):
        with pytest.raises(MalformedInput):
            log.receive(claim)
    assert not log.drained
    assert not log.complete


def test_nothing_is_appended_after_the_end() -> None:
    log = Log(LEASE, KEY)
    log.finish(sign)
    with pytest.raises(RuntimeError):
        log.append(body(0, 1))
