"""Finds out, from a few iterations of a script that nobody declared anything about, which of its loops is the training loop."""

from __future__ import annotations

import weakref

from torch.optim.optimizer import Optimizer

from labapex.errors import TrainingFailed
from labapex.proof import frameworks, loops
from labapex.proof.declared import FIVE_LINES
from labapex.proof.loops import Loop
from labapex.proof.runtime import Engine, Finished

TURNS = 3  # iterations looked at once the loop is known
PATIENCE = 50  # turns of a candidate after which an optimizer that never stepped is no longer waited for
SAY_IT = (
    "Where the loop or the update is one that Lab Apex cannot see (an update by hand, a loop within a library), say it "
    f"in five lines; `python train.py` by itself goes on as before:\n\n{FIVE_LINES}\n"
)


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
        declared = engine.declared.loop
        if loop.name != (declared or (self._chain[-1] if self._chain else None)):
            return
        self._tops += 1
        waiting = not declared and any(o not in self._stepped for o in engine.alive_optimizers())
        if not waiting or self._tops > PATIENCE:
            engine.loop = self.loop = loop.name
            if len(loop.passes) == 1 and loop.passes[0].stream == loop.name:
                self.length = _length(loop)
            elif declared:
                self.length = engine.declared.length
            elif loop.frame is not None:
                self.length = frameworks.length(loop.frame, getattr(loop, "iterable", None))
            self.parameters = sum(p.numel() for p in engine.trained())
            if not self.parameters:
                raise TrainingFailed(
                    "run.prepare was given nothing that is trained: give it the model, or the tensors that require "
                    "gradients, and change them in place"
                )

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        if engine.loop is not None:
            return
        names = frameworks.other_name(loops.caller(1)) if engine.declared.loop is None else None
        if names is not None:
            raise TrainingFailed(f"the training loop is one of {names[0]}: import it by its newer name, {names[1]}")
        chain = [loop.name for loop in loops.active(engine.loops, loops.caller(1))]
        common = chain if self._chain is None else _common(self._chain, chain)
        if not common:
            raise TrainingFailed(
                "an optimizer steps outside of any loop of the script: Lab Apex takes one turn of the loop round the "
                f"optimizers' steps for an iteration. {SAY_IT}"
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
