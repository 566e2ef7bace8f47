"""Finds out, from a few iterations of a script that nobody declared anything about, which of its loops is the training loop."""

from __future__ import annotations

import weakref

from torch.optim.optimizer import Optimizer

from labapex.errors import TrainingFailed
from labapex.proof import loops
from labapex.proof.loops import Loop
from labapex.proof.runtime import Engine, Finished

TURNS = 3  # iterations looked at once the loop is known
PATIENCE = 50  # turns of a candidate after which an optimizer that never stepped is no longer waited for


class Discovery:
    """A conductor that ends the script as soon as it knows `loop`, the loader and whether gradients survive."""

    def __init__(self) -> None:
        self.loop: str | None = None
        self.length: int | None = None  # batches in one pass over the loop's loader
        self.one_batch_each = True
        self.parameters = 0
        self._chain: list[str] | None = None  # loops that enclose every optimizer's steps, outermost first
        self._stepped: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._tops = 0
        self._turns = 0

    def search(self, engine: Engine, loop: Loop) -> None:
        if not self._chain or loop.name != self._chain[-1]:
            return
        self._tops += 1
        waiting = any(o not in self._stepped for o in engine._alive_optimizers())
        if not waiting or self._tops > PATIENCE:
            engine.loop = self.loop = loop.name
            if len(loop.passes) == 1 and loop.passes[0].stream.endswith(f"@{loop.name}"):
                self.length = _length(loop)
            self.parameters = sum(
                p.numel() for o in engine._alive_optimizers() for g in o.param_groups for p in g["params"]
            )

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        if engine.loop is not None:
            return
        chain = [loop.name for loop in loops.active(engine.loops, loops.caller(1))]
        common = chain if self._chain is None else _common(self._chain, chain)
        if not common:
            raise TrainingFailed(
                "an optimizer steps outside of any loop of the script: Lab Apex takes one turn of the loop round the "
                "optimizers' steps for an iteration"
            )
        if common != self._chain:
            self._chain, self._tops = common, 0
        self._stepped.add(optimizer)

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        pass

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        self.one_batch_each &= len(batches) == 1
        self._turns += 1
        if self._turns >= TURNS:
            raise Finished

    def forward(self, engine: Engine) -> None:
        pass


def _common(one: list[str], other: list[str]) -> list[str]:
    shared = []
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared.append(a)
    return shared


def _length(loop: Loop) -> int | None:
    try:
        return len(loop.passes[0])
    except TypeError:  # an iterable data set has no length
        return None
