"""Two logs, two processes of the platform, one database, and a network and a power supply that do their worst.

What `test_ingest` shows of the rules, this shows of the whole writer: with real transactions, in groups of both leases,
through processes that die before or after a commit and know things that are no longer so. What is stored is at each moment
a beginning of what was made, and no sender has deleted what is not stored; a lease that is over grows no more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.labapex_server.gateway.stage import Run, a_host, a_run, queued_job
from tests.labapex_server.telemetry.mutation import mutant_function

from labapex.errors import MalformedInput
from labapex.protocol.frames import Ack, Data, Nack, Open, Welcome, from_agent
from labapex.protocol.packing import pack
from labapex.protocol.states import LeaseState
from labapex_server.accounts.models import User
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import ingest, services, storage
from labapex_server.telemetry import writer as writers
from labapex_server.telemetry.ingest import Refuse
from labapex_server.telemetry.models import Frame, Leaf, Log
from labapex_server.telemetry.services import LogRefused
from labapex_server.telemetry.writer import Answer, Submission, Writer

LEASES = st.integers(0, 1)
PROCESSES = st.integers(0, 1)


@dataclass
class Sender:
    """An agent with the spool of one lease."""

    run: Run
    process: int = 0  # which one it is connected to
    position: int = 0  # the next frame that it sends
    kept: int = 0  # frames before this were deleted
    told: deque[Ack | Nack | Welcome] = field(default_factory=deque)  # answers on their way
    over: int | None = None  # how many frames were stored when the lease was given up

    @property
    def frames(self) -> list[Data]:
        return self.run.executable.frames

    def hear(self, answer: Ack | Nack | Welcome) -> None:
        if isinstance(answer, Ack):
            assert answer.head == self.frames[answer.seq].hash, "an acknowledgement of what was never made"
            self.kept = max(self.kept, answer.seq + 1)
            self.position = max(self.position, self.kept)
        elif isinstance(answer, Nack):
            self.position = max(answer.expected, self.kept)
        else:
            assert answer.seq >= self.kept, "asked for a frame that was deleted: it is lost"
            self.position = self.kept = answer.seq


class Marketplace(RuleBasedStateMachine):
    runs: ClassVar[tuple[Run, Run]]

    def __init__(self) -> None:
        super().__init__()
        leases = [run.lease.pk for run in self.runs]
        for model in (Leaf, Frame, Log):
            model.objects.filter(**{"lease__in" if model is Log else "log__in": leases}).delete()
        Lease.objects.filter(pk__in=leases).update(state=LeaseState.RUNNING.value)
        self.senders = [Sender(run) for run in self.runs]
        self.writers = [Writer(), Writer()]
        self.wires: list[deque[tuple[int, bytes]]] = [deque(), deque()]  # to each process: whose, and the message

    @initialize()
    def connect(self) -> None:
        for number in range(2):
            self.reconnect(number, 0)

    # -- the agents

    @rule(which=LEASES, count=st.integers(1, 4))
    def send(self, which: int, count: int) -> None:
        sender = self.senders[which]
        for frame in sender.frames[sender.position : sender.position + count]:
            self.wires[sender.process].append((which, pack(frame)))
            sender.position += 1

    @rule(which=LEASES)
    def retransmit(self, which: int) -> None:
        self.senders[which].position = self.senders[which].kept

    @rule(which=LEASES, process=PROCESSES)
    def reconnect(self, which: int, process: int) -> None:
        """The agent, or its host, was restarted, or its line was cut. What is on the wire to the old process still arrives."""
        sender = self.senders[which]
        sender.told.clear()
        sender.process, sender.position = process, sender.kept
        try:
            sender.hear(services.welcome(sender.run.host.worker.pk, Open(lease=sender.run.lease.pk)))
        except LogRefused as error:
            if error.code != "not-running" or sender.over is None:
                raise

    @precondition(lambda self: any(sender.told for sender in self.senders))
    @rule(which=LEASES, lost=st.booleans())
    def answer(self, which: int, lost: bool) -> None:
        sender = self.senders[which]
        if sender.told:
            answer = sender.told.popleft()
            if not lost:
                sender.hear(answer)

    # -- the line

    @precondition(lambda self: any(self.wires))
    @rule(
        process=PROCESSES,
        at=st.integers(0, 100),
        fault=st.sampled_from(["lose", "double", "flip", "swap"]),
        bit=st.integers(0, 10**6),
    )
    def fault(self, process: int, at: int, fault: str, bit: int) -> None:
        wire = self.wires[self._busy(process)]
        at %= len(wire)
        whose, message = wire[at]
        if fault == "lose":
            del wire[at]
        elif fault == "double":
            wire.append((whose, message))
        elif fault == "swap":
            del wire[at]
            wire.append((whose, message))
        else:
            flipped = bytearray(message)
            bit %= 8 * len(flipped)
            flipped[bit // 8] ^= 1 << bit % 8
            wire[at] = (whose, bytes(flipped))

    def _busy(self, process: int) -> int:
        """This process, or the other one where nothing is on its way to this one."""
        return process if self.wires[process] else 1 - process

    # -- the platform

    @precondition(lambda self: any(self.wires))
    @rule(process=PROCESSES, count=st.integers(1, 8), killed=st.sampled_from(["", "", "", "before", "after"]))
    def deliver(self, process: int, count: int, killed: str) -> None:
        """Commit what came as one group. A process that is killed answers nothing, be it before or after its commit."""
        process = self._busy(process)
        wire, writer = self.wires[process], self.writers[process]
        said: list[tuple[int, Answer]] = []
        group: list[Submission] = []
        for _ in range(min(count, len(wire))):
            whose, message = wire.popleft()
            try:
                data = from_agent(message)
            except MalformedInput:
                continue
            if isinstance(data, Data):
                worker = self.senders[whose].run.host.worker.pk
                group.append(Submission(worker, data, lambda answer, whose=whose: said.append((whose, answer))))  # type: ignore[misc]
        with transaction.atomic():
            writer.write(group)
            if killed == "before":
                transaction.set_rollback(True)
        if killed:
            self.restart(process)
            return
        for whose, answer in said:
            self._tell(whose, answer)

    def _tell(self, whose: int, answer: Answer) -> None:
        sender = self.senders[whose]
        if isinstance(answer, Ack | Nack):
            if answer.lease == sender.run.lease.pk:
                sender.told.append(answer)
            return
        assert isinstance(answer, Refuse), answer
        if answer.code in ("not-running", "wrong-worker"):  # a flipped lease id is nobody's lease
            return
        raise AssertionError(f"an honest sender was refused: {answer}")

    def restart(self, process: int) -> None:
        self.wires[process].clear()
        self.writers[process] = Writer()
        for number, sender in enumerate(self.senders):
            if sender.process == process:
                self.reconnect(number, 1 - process)

    @precondition(lambda self: any(self.wires))
    @rule(which=LEASES)
    def give_up(self, which: int) -> None:
        """The lease is over, which no process is told, while frames of it are on their way."""
        sender = self.senders[which]
        on_the_way = any(whose == which for whose, _ in self.wires[sender.process])
        if sender.over is None and sender.kept and on_the_way:
            Lease.objects.filter(pk=sender.run.lease.pk).update(state=LeaseState.FAILED.value)
            sender.over = Frame.objects.filter(log=sender.run.lease.pk).count()

    # -- what must hold

    @invariant()
    def what_is_stored_is_a_beginning_of_what_was_made(self) -> None:
        for sender in self.senders:
            lease = sender.run.lease.pk
            stored = [
                (bytes(frame.hash), bytes(frame.payload))
                for frame in Frame.objects.filter(log=lease).order_by("seq", "pk")
            ]
            assert stored == [(frame.hash, frame.payload) for frame in sender.frames[: len(stored)]]
            held = Log.objects.filter(pk=lease).first()
            assert (0 if held is None else held.seq) == len(stored)
            assert sender.kept <= len(stored), "deleted before it was stored"
            assert sender.over in (None, len(stored)), "a lease that is over has grown"

    def teardown(self) -> None:
        """Once all is well, everything of a lease that runs comes across."""
        for wire in self.wires:
            wire.clear()
        for number, sender in enumerate(self.senders):
            if sender.over is None:
                self.reconnect(number, 0)
                self.send(number, len(sender.frames))
        self.deliver(0, 100, "")
        self.what_is_stored_is_a_beginning_of_what_was_made()
        for sender in self.senders:
            if sender.over is None:
                held = Log.objects.get(pk=sender.run.lease.pk)
                assert held.next == sender.run.executable.contract.iterations
                assert writers.restore(ingest.Terms.of(sender.run.executable.contract), held).complete


@pytest.fixture
def runs(run: Run, host: User, researcher: User) -> tuple[Run, Run]:
    return run, a_run(queued_job(researcher), a_host(host, "second"), leaf_lag=1)


SEARCH = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False)


def test_two_logs_through_two_processes_are_stored_once_and_whole(runs: tuple[Run, Run]) -> None:
    machine = type("Machine", (Marketplace,), {"runs": runs})
    run_state_machine_as_test(machine, settings=settings(SEARCH, max_examples=30, stateful_step_count=30))


@pytest.mark.parametrize(
    ("module", "name", "before", "after"),
    [
        pytest.param(ingest, "receive", "if data.seq < state.seq:", "if False:", id="no dedupe"),
        pytest.param(ingest, "receive", "if data.seq > state.seq:", "if False:", id="no gap check"),
        pytest.param(ingest, "receive", "not hmac.compare_digest(expected, data.hash)", "False", id="no own hash"),
        pytest.param(storage, "_ADVANCE", "lease.state = 'running'", "TRUE", id="no fence"),
        pytest.param(storage, "_ADVANCE", "log.seq = new.column3 AND log.head = new.column4", "TRUE", id="no compare"),
    ],
)
def test_the_same_play_finds_a_broken_platform(
    runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, before: str, after: str
) -> None:
    right = getattr(module, name)
    wrong = right.replace(before, after) if isinstance(right, str) else mutant_function(right, before, after)
    assert wrong != right
    monkeypatch.setattr(module, name, wrong)
    machine = type("Broken", (Marketplace,), {"runs": runs})
    quick = settings(SEARCH, max_examples=2000, stateful_step_count=30, phases=(Phase.generate,))
    with pytest.raises((AssertionError, IndexError, Flaky)):
        run_state_machine_as_test(machine, settings=quick)
