"""What a script says of itself by `labapex.session`: the engine's side of it.

A `Head` is what `run.epochs`, `run.batches` and `run.steps` hand out. In a loop of the script's own, which is instrumented,
it only marks that loop. Anywhere else, in a library's code, it becomes a loop itself when it is iterated, with the same tops.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labapex.errors import TrainingFailed
from labapex.proof import loops
from labapex.proof.loops import Each, Loop

if TYPE_CHECKING:
    from labapex.proof.runtime import Engine

FIVE_LINES = """\
    from labapex.session import Session
    run = Session()
    model, optimizer = run.prepare(model, optimizer)  # all that training changes: modules, tensors, objects
    for batch in run.batches(loader):                 # your training loop; or: for i in run.steps(n)
        run.step(loss)                                # the last line of its body"""


class Declared:
    """One script's declarations. `loop` is the name of the loop that `run.step` was called in; None before."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop: str | None = None
        self.length: int | None = None  # its turns in an epoch, where `run.epochs` encloses `run.steps`
        self.losses: list[Any] = []  # of this turn
        self.modules: set[str] = set()  # whose classes' objects were prepared
        self.postponed: BaseException | None = None
        self._prepared: list[Callable[[], Any]] = []
        self._open: list[tuple[Loop, Head]] = []  # marked loops that run, innermost last

    # -- what the session calls ------------------------------------------------------------------------------------

    def prepare(self, objects: tuple[Any, ...]) -> None:
        if self.engine.current is not None:
            raise TrainingFailed("run.prepare was called within the training loop: call it before")
        for each in objects:
            self._prepared.append(_reference(each))
            module = type(each).__module__
            if module.partition(".")[0] not in {*sys.stdlib_module_names, "torch"}:  # these have rules of their own
                self.modules.add(module)

    def head(self, iterable: Any, *, iterations: bool) -> Head:
        return Head(self, self._place(loops.caller(3)), iterable, iterations)

    def step(self, loss: Any) -> None:
        marked = [(loop, head) for loop, head in self._open if head.iterations]
        if not marked:
            raise TrainingFailed("run.step was called outside of a loop over run.batches(loader) or run.steps(n)")
        loop, head = marked[-1]
        self.loop = loop.name
        if isinstance(head.iterable, range) and any(not h.iterations for _, h in self._open):
            self.length = len(head.iterable)
        if not self.engine.took_backward():
            self.engine.conductor.forward(self.engine)
        if loss is None:
            return
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self.losses.append(loss.detach())  # a float only at the boundary: a GPU is not waited for here
            return
        try:
            self.losses.append(float(loss))
        except (TypeError, ValueError):
            raise TrainingFailed("run.step takes this turn's loss: a number, or a tensor of one element") from None

    # -- what the engine asks --------------------------------------------------------------------------------------

    def objects(self) -> list[Any]:
        """What was prepared, None in the place of what is gone."""
        return [reference() for reference in self._prepared]

    def tensors(self) -> dict[str, Tensor]:
        """Prepared tensors that are trained, by their places: "prepared.0", "prepared.1.weights"."""
        return {
            name: value
            for name, value in _flat("prepared", self.objects())
            if isinstance(value, Tensor) and _leaf(value)
        }

    def models(self) -> dict[str, nn.Module]:
        return {name: value for name, value in _flat("prepared", self.objects()) if isinstance(value, nn.Module)}

    def parameters(self) -> list[Tensor]:
        inner = [p for module in self.models().values() for p in module.parameters()]
        return [*inner, *self.tensors().values()]

    def opened(self, loop: Loop, head: Head) -> None:
        if all(known is not loop for known, _ in self._open):
            self._open.append((loop, head))

    def left(self, loop: Loop) -> None:
        self._open = [(known, head) for known, head in self._open if known is not loop]

    def resume(self) -> None:
        """Raise what could not be raised where it happened."""
        if self.postponed is not None:
            error, self.postponed = self.postponed, None
            raise error

    def _place(self, frame: FrameType) -> str:
        file = Path(frame.f_code.co_filename)
        inside = file.is_relative_to(self.engine.root)
        name = file.relative_to(self.engine.root).as_posix() if inside else frame.f_globals.get("__name__", "?")
        return f"{name}:{frame.f_lineno}"


class Head:
    """Stands for what a loop runs over. `place`: where the script asked for it."""

    def __init__(self, declared: Declared, place: str, iterable: Any, iterations: bool) -> None:
        self.declared = declared
        self.place = place
        self.iterable = iterable
        self.iterations = iterations  # its turns may be iterations; else epochs

    def __iter__(self) -> Iterator[Any]:
        loop = loops.collecting()
        if loop is not None:
            self.declared.opened(loop, self)
            return iter(self.iterable)
        frame, engine = loops.caller(1), self.declared.engine
        name = f"{self.place} in {frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"
        hidden = engine._enter(Each(engine, name, frame, self.iterable), frame)
        self.declared.opened(hidden, self)
        return Hidden(hidden, self.declared)

    def __len__(self) -> int:
        return len(self.iterable)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "iterable":
            raise AttributeError(name)
        return getattr(self.iterable, name)  # a library asks a loader for its data set, its batch size


class Hidden:
    """The iterator of a loop whose code is not instrumented: nobody says when it is left, so its end is this one's."""

    def __init__(self, loop: Each, declared: Declared) -> None:
        self.loop = loop
        self.declared = declared

    def __iter__(self) -> Hidden:
        return self

    def __next__(self) -> Any:
        if self.loop.frame is None:
            raise StopIteration
        try:
            return next(self.loop)
        except BaseException:
            self._exit()
            raise

    def _exit(self) -> None:
        if self.loop.frame is not None:
            self.loop.exit()

    def __del__(self) -> None:
        try:
            self._exit()
        except BaseException as error:  # noqa: BLE001 - Python drops what a finaliser raises; the next top raises it
            self.declared.postponed = error


def _reference(value: Any) -> Callable[[], Any]:
    """Weak where it can be: what the script let go of is no state any more."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{path}.{key}", item)
    else:
        yield path, value


def _leaf(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and tensor.is_leaf
