"""Five lines for scripts whose training cannot be seen from outside: updates without a torch optimizer, loops in libraries.

    from labapex.session import Session
    run = Session()
    model, optimizer = run.prepare(model, optimizer)
    for epoch in run.epochs(3):
        for x, y in run.batches(loader):
            ...
            run.step(loss)

In a plain `python train.py` all of this passes through: no torch is imported, nothing is wrapped. Where Lab Apex tries, records
or replays the script the same lines tell its engine what it could not find out.
"""

from __future__ import annotations

import builtins
from typing import Any, TypeVar

from labapex.proof.instrument import HANDLE

L = TypeVar("L")


class Session:
    """Says which loop's turns are iterations, what their losses are, and what belongs to training. One for a script."""

    def __init__(self) -> None:
        engine = vars(builtins).get(HANDLE)
        self._declared = None if engine is None else engine.declared

    def prepare(self, *objects: Any) -> Any:
        """Register all that training changes: modules, tensors, optimizers, schedulers, other objects with attributes,
        and lists or dicts of them. To be called before the loop.

        Returns the very same objects: one alone, several as a tuple. They must be changed in place.
        """
        if self._declared is not None:
            self._declared.prepare(objects)
        return objects[0] if len(objects) == 1 else objects

    def epochs(self, count: int) -> range:
        """0, 1, .. `count` - 1, for the loop over epochs."""
        return self._head(range(count), iterations=False)

    def batches(self, loader: L) -> L:
        """What `loader` yields, for the training loop: in the script, or in a library that is handed this."""
        return self._head(loader, iterations=True)

    def steps(self, count: int) -> range:
        """0, 1, .. `count` - 1, for a training loop that has no loader."""
        return self._head(range(count), iterations=True)

    def step(self, loss: Any = None) -> None:
        """The update of this turn is done. `loss`: a number, or a tensor of one element; several of one turn are added up.

        None: the loss is what `backward` was called on. Where Lab Apex runs the script, `TrainingFailed` says so when this
        is called outside of a loop over `batches` or `steps`, or with something that is no loss.
        """
        if self._declared is not None:
            self._declared.step(loss)

    def _head(self, iterable: L, *, iterations: bool) -> L:
        if self._declared is None:
            return iterable
        head: L = self._declared.head(iterable, iterations=iterations)  # stands for it, and is asked like it
        return head
