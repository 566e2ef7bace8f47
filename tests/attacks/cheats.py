"""Dishonest trainers. Each tells its lie through the real interfaces: it has the job's seed, script and data, and reports
losses and leaves that are well formed and chained as an honest trainer's are.

They are what a host's owner can build who takes the runner apart, which nothing on his own machine can prevent.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from labapex.errors import TrainingFailed
from labapex.proof import loaders
from labapex.proof.engine import environment
from labapex.proof.record import Recorder
from labapex.proof.runtime import Engine, Finished
from labapex.proof.sink import Sink
from labapex.proof.state import State
from labapex.protocol.contract import Contract, Environment

Train = Callable[..., None]


class Inventor(Recorder):
    """Trains honestly up to `stop` iterations, then invents the rest: losses that fall, states that hardly move."""

    stop = 0

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        super().boundary(engine, at_top=at_top)
        if engine.step >= self.stop:
            self._invent(engine, engine.capture())
            raise Finished

    def _invent(self, engine: Engine, state: State) -> None:
        dice = random.Random(1)
        loss = self.losses[-1] if self.losses else 2.3
        order = self._order(engine)
        for _, due in pairwise([0, *(d for d in self.due if d > engine.step)]):
            while engine.step < due:
                loss *= dice.uniform(0.93, 1.05)
                self.iteration(engine.step, loss, order(engine.step))
                engine.step += 1
            tensors = {n: self._nudged(t) if n in state.parameters else t for n, t in state.tensors.items()}
            state = State({**state.structure, "step": due}, tensors, state.parameters)
            self._leaf(state, engine.settings())

    def _nudged(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 1e-4 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor

    def _order(self, engine: Engine) -> Callable[[int], list[bytes]]:
        """The batches that would have been due: the cheat can derive them as the verifier does."""
        loop, per_epoch = engine.current, self.contract.facts.iterations_per_epoch
        if not self.contract.facts.has_loader or loop is None:
            return lambda step: []
        passes = [list(loaders.pass_digests(loop.passes[0], e)) for e in range(self.contract.epochs)]
        return lambda step: [passes[step // per_epoch][step % per_epoch]]

    def __init__(self, contract: Contract, states: Path, sink: Sink) -> None:
        super().__init__(contract, states, sink)
        self.contract = contract


class Noop(Inventor):
    """Never trains."""


class SkipEpochs(Inventor):
    """Trains the first epoch and invents the others."""

    def __init__(self, contract: Contract, states: Path, sink: Sink) -> None:
        super().__init__(contract, states, sink)
        self.stop = contract.facts.iterations_per_epoch


class ForgedLoss(Recorder):
    """Trains honestly and reports losses that look better than they are."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        super().iteration(step, 0.9 * loss, batches)


def noop(contract: Contract, folder: Path, sink: Sink) -> None:
    _run(Noop, contract, folder, sink)


def skip_epochs(contract: Contract, folder: Path, sink: Sink) -> None:
    _run(SkipEpochs, contract, folder, sink)


def forged_loss(contract: Contract, folder: Path, sink: Sink) -> None:
    _run(ForgedLoss, contract, folder, sink)


def other_seed(contract: Contract, folder: Path, sink: Sink) -> None:
    """Trains honestly from randomness of its own choice: a run that it may have made before, or sold twice."""
    _run(Recorder, contract, folder, sink, seed="ab" * 32)


def half_batch(contract: Contract, folder: Path, sink: Sink) -> None:
    """Trains on the first half of each batch."""
    plain_next, plain_stack = loaders.Pass.__next__, torch.stack

    def half(self: loaders.Pass) -> Any:
        batch = plain_next(self)
        return [part[: len(part) // 2 + 1] for part in batch] if isinstance(batch, list) else batch

    loaders.Pass.__next__ = half  # type: ignore[method-assign]
    if not contract.facts.has_loader:

        def half_stack(tensors: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            kept = tensors[: len(tensors) // 2 + 1] if isinstance(tensors, list) else tensors
            return plain_stack(kept, *args, **kwargs)

        torch.stack = half_stack
    _run(Recorder, contract, folder, sink)


CHEATS: dict[str, Train] = {
    "noop": noop,
    "skip-epochs": skip_epochs,
    "forged-loss": forged_loss,
    "other-seed": other_seed,
    "half-batch": half_batch,
}


def load(name: str) -> Callable[[], tuple[Callable[[int], Environment], Train]]:
    """What `labapex_runner.supervisor.supervise` takes in place of the engine."""

    def train(*, contract: Contract, folder: Path, sink: Sink) -> None:
        CHEATS[name](contract, folder, sink)

    return lambda: (environment, train)


def _run(kind: type[Recorder], contract: Contract, folder: Path, sink: Sink, seed: str | None = None) -> None:
    recorder = kind(contract, folder / "states", sink)
    engine = Engine.under(contract, folder / "work", recorder, seed=seed)
    try:
        engine.run(contract.threads)
    except TrainingFailed:
        recorder.drain()
        raise
    recorder.close(engine)
