"""Records a run: a loss for each iteration, and every k steps a leaf that commits to the whole state.

The script's thread only copies the state; digest, file and leaf are made in a background thread. Where it falls behind, the
script waits: besides its own there are never more than three states in memory, the last that is committed among them.
Files are written of the leaves that the contract has the host keep; the others' states can be made anew from them.
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
from labapex.proof import merkle
from labapex.proof.block import Buffers
from labapex.proof.image import Image
from labapex.proof.loops import Loop
from labapex.proof.runtime import Engine, Finished
from labapex.proof.sink import Sink
from labapex.proof.state import State, losses_digest, parameter_change
from labapex.protocol.canonical import digest
from labapex.protocol.contract import Contract
from labapex.protocol.records import Leaf, column

_BEHIND = 2  # states that may be copied and not committed yet
_now = time.time  # the plain clock: the engine marks the script's


class Recorder:
    """The conductor of a recorded run. `after`: a kept leaf, from which a run that was interrupted goes on."""

    def __init__(self, contract: Contract, states: Path, sink: Sink, after: Leaf | None = None) -> None:
        self.states = states
        self.sink = sink
        self.after = after
        self.due = contract.leaf_steps()
        self.total = self.due[-1]
        self.kept = contract.kept_leaves()
        self.prev = digest(contract.first) if after is None else after.digest()
        self.index = 0 if after is None else after.index + 1
        self.losses: list[float] = []
        self.scalars: dict[str, float] = {}  # told since the iteration before; the last value of a name counts
        self.batches: list[bytes] = []
        self.before: State | None = None
        self.image: Image | None = None  # of that state
        self.buffers = Buffers()
        self.lock = threading.Lock()  # the sink hears from the script's thread and from the committing one
        self.committing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self.pending: list[Future[None]] = []

    def search(self, engine: Engine, loop: Loop) -> None:
        raise AssertionError("a recorded run knows its loop from the contract")

    def told(self, name: str, value: float) -> None:
        """What the script says of itself to a logger."""
        self.scalars[name] = value

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if self.after is not None:
            self.scalars.clear()  # of a way that was gone before
            self._go_on(engine, self.after)
            self.after = self.after if engine.heading is not None else None
            return
        self._tell()
        if self._is_due(engine.step) and (at_top or engine.step == self.total):
            while len(self.pending) >= _BEHIND:
                self.pending.pop(0).result()
            self._leaf(engine.capture(self.buffers), engine.settings())

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        self.losses.append(loss)
        self.batches.append(step_digest(batches))
        self._tell()
        with self.lock:
            self.sink.iteration(step, loss, _now())

    def forward(self, engine: Engine) -> None:
        if engine.step >= self.total:
            raise Finished  # the contract is fulfilled; a script that would go on for ever ends here

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        pass

    def _tell(self) -> None:
        if self.scalars and self.after is None:
            told, self.scalars = self.scalars, {}
            with self.lock:
                self.sink.scalars(told)

    def _is_due(self, step: int) -> bool:
        return self.index < len(self.due) and step == self.due[self.index]

    def _go_on(self, engine: Engine, after: Leaf) -> None:
        """From the first boundary of this process to the one at which the state of `after` was kept."""
        engine.capture()  # what nobody touched is told from what is there now
        state = State.load(self.states / f"{after.index}.safetensors")
        if state.digest() != after.state:
            raise TrainingFailed(f"the state of leaf {after.index} is not the one that was committed")
        if not engine.restore(state) and engine.heading is None:
            raise TrainingFailed(f"the run cannot be brought to leaf {after.index}, at step {after.step}")
        self.before = state

    def _leaf(self, state: State, settings: str) -> None:
        index, step = self.index, int(state.structure["step"])
        losses, batches = column(self.losses), batches_digest(self.batches)
        self.index, self.losses, self.batches = self.index + 1, [], []
        self.pending.append(self.committing.submit(self._commit, index, step, state, settings, losses, batches))

    def _commit(self, index: int, step: int, state: State, settings: str, losses: bytes, batches: str) -> None:
        norm = parameter_change(self.before, state) if self.before is not None else 0.0
        image = state.image()
        tree, size = image.tree(self.image), image.size
        if index in self.kept:
            image.save(self.states / f"{index}.safetensors")
            (self.states / f"{index}.tree").write_bytes(b"".join(tree))
        leaf = Leaf(
            index=index,
            step=step,
            state=merkle.root_of_hashes(tree).hex(),
            size=size,
            chunks=len(tree),
            settings=settings,
            update_norm=norm,
            batches=batches,
            losses=losses_digest(losses),
            prev=self.prev,
        )
        if self.before is not None:
            self.buffers.give_back(self.before.tensors)
        self.before, self.image, self.prev = state, image, leaf.digest()
        with self.lock:
            self.sink.leaf(leaf)

    def drain(self) -> None:
        """Wait for the leaves under way; raises what went wrong with them."""
        self._tell()
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
