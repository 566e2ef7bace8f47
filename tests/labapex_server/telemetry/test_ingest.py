"""The receiving end of a log, over a line that loses, doubles, reorders and flips bits."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.labapex_server.telemetry.executable import Executable, a_contract, a_sample, rehashed
from tests.labapex_server.telemetry.mutation import mutant_module

from labapex.errors import MalformedInput
from labapex.protocol.frames import Ack, Data, Nack, Welcome, from_agent, genesis
from labapex.protocol.packing import pack
from labapex.protocol.records import MAX_SERIES, FrameBody, Series, column
from labapex.sealing import new_key, open_frame
from labapex_server.telemetry import ingest
from labapex_server.telemetry.ingest import Accept, Again, Gap, LogState, Refuse, Terms, conclude, receive


class Held:
    """An executable's frames up to a point, received."""

    def __init__(self, executable: Executable, *, upto: int = 0) -> None:
        self.executable = executable
        self.terms = Terms.of(executable.contract)
        self.state = LogState.empty(self.terms)
        for frame in executable.frames[:upto]:
            decision = self.offer(frame)
            assert isinstance(decision, Accept), decision
            self.state = decision.state

    def offer(self, frame: Data) -> ingest.Decision:
        return receive(self.terms, self.state, frame, partial(open_frame, self.executable.run_key))


def refusal(decision: ingest.Decision) -> Refuse:
    assert isinstance(decision, Refuse), decision
    return decision


@given(epochs=st.integers(1, 6), per_epoch=st.integers(1, 12), every=st.integers(1, 80))
def test_leaves_are_due_one_by_one_as_the_contract_lists_them(epochs: int, per_epoch: int, every: int) -> None:
    contract = a_contract(epochs=epochs, per_epoch=per_epoch, every=every)
    terms, steps = Terms.of(contract), [0]
    while (due := terms.due_after(steps[-1])) is not None:
        steps.append(due)
    assert steps == contract.leaf_steps()


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_whole_log_is_accepted_and_complete(lag: int) -> None:
    executable = Executable(a_contract(), leaf_lag=lag)
    held = Held(executable, upto=len(executable.frames))
    assert held.state.complete
    assert held.state.next == executable.contract.iterations
    assert conclude(held.terms, held.state, executable.fin()) is None


@given(upto=st.integers(0, 6), lag=st.integers(0, 2))
@settings(deadline=None)
def test_a_state_restored_from_what_is_stored_goes_on_like_the_one_that_was_lost(upto: int, lag: int) -> None:
    executable = Executable(a_contract(), leaf_lag=lag)
    held = Held(executable, upto=upto)
    leaves = [leaf for frame in executable.frames[:upto] for leaf in open_frame(executable.run_key, frame).leaves]
    last = leaves[-1] if leaves else None
    held.state = LogState.restore(
        held.terms,
        seq=upto,
        next=held.state.next,
        head=held.state.head,
        last=last,
        losses=column(executable.losses[last.step if last else 0 : held.state.next]),
    )
    for frame in executable.frames[upto:]:
        decision = held.offer(frame)
        assert isinstance(decision, Accept), decision
        held.state = decision.state
    assert held.state.complete


def test_a_frame_that_is_held_is_acknowledged_again() -> None:
    held = Held(Executable(a_contract()), upto=3)
    for frame in held.executable.frames[:3]:
        assert held.offer(frame) == Again(Ack(lease=held.terms.lease, seq=2, head=held.executable.frames[2].hash))


def test_a_gap_is_asked_for() -> None:
    held = Held(Executable(a_contract()), upto=1)
    assert held.offer(held.executable.frames[2]) == Gap(Nack(lease=held.terms.lease, expected=1))


@given(data=st.data())
@settings(deadline=None)
def test_a_flipped_bit_anywhere_in_a_message_is_never_committed(data: st.DataObject) -> None:
    held = Held(EXECUTABLE, upto=1)
    message = bytearray(pack(held.executable.frames[1]))
    bit = data.draw(st.integers(0, 8 * len(message) - 1))
    message[bit // 8] ^= 1 << bit % 8
    try:
        frame = from_agent(bytes(message))
    except MalformedInput:
        return
    if not isinstance(frame, Data) or frame == held.executable.frames[1]:
        return  # an upper-case letter in a UUID is the same UUID
    assert not isinstance(held.offer(frame), Accept)


EXECUTABLE = Executable(a_contract())


def test_another_history_of_the_last_frame_is_a_fork() -> None:
    held = Held(Executable(a_contract()), upto=2)
    assert refusal(held.offer(rehashed(held.executable.frames[1], payload=b"another"))).code == "fork"


def test_a_frame_that_does_not_continue_the_chain_is_a_fork() -> None:
    held = Held(Executable(a_contract()), upto=1)
    frame = rehashed(held.executable.frames[1], prev=genesis(held.terms.lease))
    assert refusal(held.offer(frame)).code == "fork"


def test_a_frame_of_another_lease_is_refused() -> None:
    held = Held(Executable(a_contract()))
    assert refusal(held.offer(Executable(a_contract()).frames[0])).code == "wrong-lease"


def test_a_frame_that_skips_iterations_is_refused() -> None:
    held = Held(Executable(a_contract()), upto=1)
    executable = held.executable
    del executable.frames[1:]
    assert refusal(held.offer(executable.append([1.0], first=5))).code == "count"


def test_iterations_beyond_the_contract_are_refused() -> None:
    executable = Executable(a_contract())
    held = Held(executable, upto=len(executable.frames))
    assert refusal(held.offer(executable.append([1.0], first=executable.contract.iterations))).code == "count"


def test_a_body_under_another_key_is_refused() -> None:
    executable = Executable(a_contract())
    held = Held(executable)
    executable.run_key = new_key()
    assert refusal(held.offer(executable.frames[0])).code == "body"


def test_a_loss_that_is_not_finite_is_kept_and_a_time_that_is_not_is_refused() -> None:
    executable = Executable(a_contract(), losses=[math.nan, math.inf, -math.inf, *[1.0] * 11])
    assert Held(executable, upto=len(executable.frames)).state.complete
    executable.frames.clear()
    frame = executable.append([1.0], first=0, times=column([math.nan]))
    assert "time" in refusal(Held(executable).offer(frame)).message


@pytest.mark.parametrize("change", [{"at": math.inf}, {"memory": 2**60}])
def test_a_sample_beyond_physics_is_refused(change: dict[str, Any]) -> None:
    executable = Executable(a_contract())
    executable.frames.clear()
    frame = executable.append([], first=0, samples=(a_sample(0).model_copy(update=change),))
    assert "sample" in refusal(Held(executable).offer(frame)).message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"index": 1}, "leaf 0 is due"),
        ({"step": 1}, "due at step"),
        ({"prev": "00" * 32}, "does not follow"),
        ({"losses": "00" * 32}, "other losses"),
        ({"size": 2**60}, "impossible"),
    ],
)
def test_a_leaf_out_of_its_order_or_place_is_refused(change: dict[str, Any], word: str) -> None:
    executable = Executable(a_contract())
    leaf = open_frame(executable.run_key, executable.frames[0]).leaves[0]
    executable.frames.clear()
    frame = executable.append([], first=0, leaves=(leaf.model_copy(update=change),))
    assert word in refusal(Held(executable).offer(frame)).message


def test_a_leaf_before_its_losses_is_refused() -> None:
    executable = Executable(a_contract())
    leaves = open_frame(executable.run_key, executable.frames[0]).leaves
    executable.frames.clear()
    assert "before the losses" in refusal(Held(executable).offer(executable.append([], first=0, leaves=leaves))).message


def a_series(name: str, *iterations: int) -> Series:
    return Series(name=name, iterations=iterations, values=bytes(8 * len(iterations)))


@pytest.mark.parametrize("iterations", [(3,), (4, 7), (6,), (2**52,)])
def test_a_point_of_a_series_outside_of_its_frames_iterations_is_refused(iterations: tuple[int, ...]) -> None:
    executable = Executable(a_contract())
    held = Held(executable, upto=1)
    executable.frames[1:] = []
    frame = executable.append([0.5], first=4, series=(a_series("rate", *iterations),))
    assert "no iteration of the frame" in refusal(held.offer(frame)).message
    executable.frames[1:] = []
    assert isinstance(held.offer(executable.append([0.5], first=4, series=(a_series("rate", 4, 5),))), Accept)


def test_series_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    executable = Executable(a_contract())
    executable.frames.clear()
    held = Held(executable)
    for number in range(MAX_SERIES + 1):
        decision = held.offer(
            executable.append([], first=0, series=(a_series(str(number), 0), a_series("0", 0))[: number + 1])
        )
        if number < MAX_SERIES:
            assert isinstance(decision, Accept)
            held.state = decision.state
    assert refusal(decision).message.endswith("a log has at most 64 series")


def test_losses_that_run_away_from_their_leaves_are_refused() -> None:
    executable = Executable(a_contract(per_epoch=5000, every=1), frame_losses=200)
    executable.frames.clear()
    held = Held(executable)
    first = held.offer(executable.append(executable.losses[:4090], first=0))
    assert isinstance(first, Accept)
    held.state = first.state
    frame = executable.append(executable.losses[4090:4200], first=4090)
    assert "did not come" in refusal(held.offer(frame)).message


def test_the_end_is_refused_before_every_iteration_and_leaf_is_held() -> None:
    executable = Executable(a_contract(), leaf_lag=1)
    short = Held(executable, upto=2)
    assert conclude(short.terms, short.state, executable.fin()) == Gap(Nack(lease=short.terms.lease, expected=2))
    whole = Held(executable, upto=len(executable.frames) - 2)
    early = executable.fin().model_copy(
        update={"seq": whole.state.seq, "head": whole.state.head, "total": whole.state.next}
    )
    answer = conclude(whole.terms, whole.state, early)
    assert isinstance(answer, Refuse)
    assert "leaf of step" in answer.message


class Line(RuleBasedStateMachine):
    """A sender with a window, a line that does its worst, and the receiver; what is committed must be what was made."""

    module: Any = ingest

    def __init__(self) -> None:
        super().__init__()
        self.executable = EXECUTABLE
        self.lease = EXECUTABLE.contract.lease
        self.terms = self.module.Terms.of(EXECUTABLE.contract)
        self.state = self.module.LogState.empty(self.terms)
        self.committed: list[Data] = []
        self.to_receiver: list[bytes] = []
        self.to_sender: list[Ack | Nack | Welcome] = []
        self.position = 0  # the next frame that the sender sends
        self.kept = 0  # frames before this were deleted by the sender

    @rule(count=st.integers(1, 4))
    def send(self, count: int) -> None:
        for _ in range(count):
            if self.position < len(self.executable.frames):
                assert self.position >= self.kept, "asked for a frame that was deleted: it is lost"
                self.to_receiver.append(pack(self.executable.frames[self.position]))
                self.position += 1

    @rule()
    def retransmit(self) -> None:
        self.position = self.kept

    @rule()
    def reconnect(self) -> None:
        self.to_receiver.clear()
        self.to_sender.clear()
        self._hear(self.state.welcome(self.lease))

    @precondition(lambda self: self.to_receiver)
    @rule(at=st.integers(0, 100), fault=st.sampled_from(["lose", "double", "flip", "swap"]), bit=st.integers(0, 10**6))
    def fault(self, at: int, fault: str, bit: int) -> None:
        at %= len(self.to_receiver)
        if fault == "lose":
            del self.to_receiver[at]
        elif fault == "double":
            self.to_receiver.append(self.to_receiver[at])
        elif fault == "swap":
            self.to_receiver.append(self.to_receiver.pop(at))
        else:
            message = bytearray(self.to_receiver[at])
            bit %= 8 * len(message)
            message[bit // 8] ^= 1 << bit % 8
            self.to_receiver[at] = bytes(message)

    @precondition(lambda self: self.to_receiver)
    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.to_receiver))):
            self._receive(self.to_receiver.pop(0))

    def _receive(self, message: bytes) -> None:
        try:
            frame = from_agent(message)
        except MalformedInput:
            return  # the connection is closed; the sender's timer does the rest
        if not isinstance(frame, Data):
            return
        module = self.module
        decision = module.receive(self.terms, self.state, frame, self._open)
        if isinstance(decision, module.Accept):
            self.state = decision.state
            self.committed.append(frame)
            self.to_sender.append(self.state.ack(self.lease))
        elif isinstance(decision, module.Again):
            self.to_sender.append(decision.ack)
        elif isinstance(decision, module.Gap):
            self.to_sender.append(decision.nack)
        else:
            assert frame.lease != self.lease, f"an honest sender was refused: {decision}"

    def _open(self, frame: Data) -> FrameBody:
        return open_frame(self.executable.run_key, frame)

    @precondition(lambda self: self.to_sender)
    @rule(lost=st.booleans())
    def answer(self, lost: bool) -> None:
        answer = self.to_sender.pop(0)
        if not lost:
            self._hear(answer)

    def _hear(self, answer: Ack | Nack | Welcome) -> None:
        if isinstance(answer, Ack):
            assert answer.head == self.executable.frames[answer.seq].hash
            self.kept = max(self.kept, answer.seq + 1)
            self.position = max(self.position, self.kept)
        elif isinstance(answer, Nack):
            self.position = max(answer.expected, self.kept)
        else:
            self.position = self.kept = answer.seq

    @invariant()
    def what_is_committed_is_what_was_made(self) -> None:
        assert self.committed == self.executable.frames[: len(self.committed)]
        assert self.state.seq == len(self.committed)

    @invariant()
    def nothing_is_deleted_that_is_not_committed(self) -> None:
        assert self.kept <= len(self.committed)

    def teardown(self) -> None:
        """Once the line is good again, a timer and an answer bring everything across."""
        self.to_receiver.clear()
        self.to_sender.clear()
        self.retransmit()
        self.send(len(self.executable.frames))
        self.deliver(len(self.to_receiver))
        self.what_is_committed_is_what_was_made()
        assert self.state.seq == len(self.executable.frames)
        assert self.state.complete


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("if data.seq < state.seq:", "if False:", id="no dedupe"),
        pytest.param("if data.seq > state.seq:", "if False:", id="no gap check"),
        pytest.param("if not hmac.compare_digest(expected, data.hash):", "if False:", id="no own hash"),
        pytest.param("seq=self.seq - 1, head=", "seq=self.seq, head=", id="acks ahead"),
    ],
)
def test_the_same_line_finds_a_broken_receiver(before: str, after: str) -> None:
    broken = type("Broken", (Line,), {"module": mutant_module(ingest, before, after)})
    quick = settings(
        max_examples=4000,
        stateful_step_count=30,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    with pytest.raises((AssertionError, IndexError, Flaky)):
        run_state_machine_as_test(broken, settings=quick)
