"""Records a run: a loss for each iteration, and every k steps a leaf that commits to the whole state.

The script's thread only copies the state; digest, file and leaf are made in a background thread, at most two states behind.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch.optim.optimizer import Optimizer

from labapex.errors import TrainingFailed
from labapex.proof.loops import Loop
from labapex.proof.runtime import Engine, Finished
from labapex.proof.sink import Sink
from labapex.proof.state import Buffers, State, losses_digest, parameter_change
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf, column

_now = time.time  # the plain clock: the engine marks the script's


class Recorder:
    """The conductor of a recorded run."""

    def __init__(self, contract: Contract, states: Path, sink: Sink) -> None:
        self.states = states
        self.sink = sink
        self.due = contract.leaf_steps()
        self.total = self.due[-1]
        self.prev = digest(contract)
        self.index = 0
        self.losses: list[float] = []
        self.batches: list[bytes] = []
        self.before: State | None = None
        self.buffers = Buffers()
        self.lock = threading.Lock()  # the sink hears from the script's thread and from the committing one
        self.committing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self.pending: list[Future[None]] = []

    def search(self, engine: Engine, loop: Loop) -> None:
        raise AssertionError("a recorded run knows its loop from the contract")

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if self.index < len(self.due) and engine.step == self.due[self.index] and (at_top or engine.step == self.total):
            self._leaf(engine.capture(self.buffers))

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        self.losses.append(loss)
        self.batches.append(step_digest(batches))
        with self.lock:
            self.sink.iteration(step, loss, _now())

    def forward(self, engine: Engine) -> None:
        if engine.step >= self.total:
            raise Finished  # the contract is fulfilled; a script that would go on for ever ends here

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        pass

    def _leaf(self, state: State) -> None:
        while len(self.pending) >= 2:
            self.pending.pop(0).result()
        index, step = self.index, int(state.structure["step"])
        losses, batches = column(self.losses), batches_digest(self.batches)
        self.index, self.losses, self.batches = self.index + 1, [], []
        self.pending.append(self.committing.submit(self._commit, index, step, state, losses, batches))

    def _commit(self, index: int, step: int, state: State, losses: bytes, batches: str) -> None:
        norm = parameter_change(self.before, state) if self.before is not None else 0.0
        size = state.save(self.states / f"{index}.safetensors")
        leaf = Leaf(
            index=index,
            step=step,
            state=state.digest(),
            size=size,
            update_norm=norm,
            batches=batches,
            losses=losses_digest(losses),
            prev=self.prev,
        )
        if self.before is not None:
            self.buffers.give_back(self.before.tensors)
        self.before, self.prev = state, leaf.digest()
        with self.lock:
            self.sink.leaf(leaf)

    def drain(self) -> None:
        """Wait for the leaves under way; raises what went wrong with them."""
        self.committing.shutdown(wait=True)
        for future in self.pending:
            future.result()

    def close(self, engine: Engine) -> None:
        """Wait for the last leaf. Raises `TrainingFailed` where the run did not make the iterations of its contract."""
        self.drain()
        if self.index < len(self.due):
            raise TrainingFailed(
                f"the script ended after {engine.step} iterations; the job's terms are {self.total}. Make the script's "
                "own number of epochs follow the job's, for example with args: ['--epochs', '{epochs}']"
            )


def step_digest(batches: Iterable[bytes]) -> bytes:
    """SHA-256 over the digests of the batches that one iteration took."""
    return hashlib.sha256(b"".join(batches)).digest()


def batches_digest(steps: Iterable[bytes]) -> str:
    """SHA-256 over the steps' digests since the last leaf: `Leaf.batches`."""
    return hashlib.sha256(b"".join(steps)).hexdigest()
