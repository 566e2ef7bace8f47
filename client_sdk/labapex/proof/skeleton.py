"""Foretells the hyper-parameters of every leaf: runs a script over all of its iterations without training anything.

The script, its loops, schedulers and conditions run as they are; what is expensive does not. The outermost call of a module is
computed once for each shape of its input and then answered from memory; nothing is propagated backwards; an optimizer's
step counts and changes nothing; a pass over a loader fetches one batch of each size.

So the losses are made up, and settings that depend on them cannot be foretold. Which do is found out by two courses of the
losses, one that always improves and one that never does: what a leaf's settings are in both is foretold.
"""

from __future__ import annotations

import functools
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import IterableDataset
from torch.utils.data.dataloader import _DatasetKind

from labapex.errors import TrainingFailed
from labapex.proof import loaders
from labapex.proof.isolate import fresh_work, isolated
from labapex.proof.loops import Loop
from labapex.proof.runtime import Engine, Finished
from labapex.protocol.contract import Contract
from labapex.protocol.replay import Foretold

RANGE = 6  # decades over which the losses of a course fall or rise
OVERFLOWS = 3  # of so many scaled steps, one overflows in the course that never improves
_now = time.perf_counter  # the plain clock: the engine marks the script's


class Foreteller:
    """The conductor of a run without training: the settings at each leaf. `improving`: the course that its losses take."""

    def __init__(self, contract: Contract, *, improving: bool) -> None:
        self.due = contract.leaf_steps()
        self.total = contract.iterations
        self.improving = improving
        self.settings: list[str] = []
        self.foreign: set[str] = set()  # optimizers that are not torch's
        self.problem: str | None = "no optimizer of torch's makes a step"

    def search(self, engine: Engine, loop: Loop) -> None:
        raise AssertionError("a skeleton knows its loop from the contract")

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        index = len(self.settings)
        if index < len(self.due) and engine.step == self.due[index] and (at_top or engine.step == self.total):
            self.settings.append(engine.settings())

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        pass

    def forward(self, engine: Engine) -> None:
        if engine.step >= self.total:
            raise Finished

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        if not type(optimizer).__module__.startswith("torch.optim."):
            self.foreign.add(type(optimizer).__name__)
        self.problem = (
            f"{min(self.foreign)} is no optimizer of torch's and may change its settings by itself"
            if self.foreign
            else None
        )

    def share(self, engine: Engine) -> float:
        """What the course makes of a loss of 1 by now; what is read before the training loop begins is no loss."""
        if not self.settings:
            return 1.0
        done = engine.step / self.total
        return float(10.0 ** (-RANGE * (done if self.improving else 1 - done)))


def foretell(contract: Contract, folder: Path, seconds: float) -> Foretold:
    """What the settings must be at every leaf of the script in `folder`/work, found in at most `seconds`.

    Each course runs in a child, in a copy of `work`. Raises nothing on the script's account: the answer says why not."""
    try:
        courses = [_course(contract, folder, improving, seconds / 2) for improving in (True, False)]
        return Foretold(settings=tuple(a if a == b else None for a, b in zip(*courses, strict=True)))
    except (TrainingFailed, ValueError) as error:
        return Foretold(problem=(str(error).strip().splitlines() or [""])[-1][:500])


def _course(contract: Contract, folder: Path, improving: bool, seconds: float) -> list[str]:
    """Raises `TrainingFailed` where the script cannot be run so; `ValueError` where the script meddled with the result."""
    work = fresh_work(folder, "skeleton")
    began = _now()

    def run() -> dict[str, Any]:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # ends the process
        foreteller = Foreteller(contract, improving=improving)
        engine = Engine.under(contract, work, foreteller)
        without_training(engine, foreteller)
        engine.run(contract.threads)
        if foreteller.problem is not None:
            raise TrainingFailed(foreteller.problem)
        if len(foreteller.settings) < len(foreteller.due):
            raise TrainingFailed(f"with other losses it makes {engine.step} iterations of {foreteller.total}")
        return {"settings": foreteller.settings}

    try:
        found = isolated(run, Path("/dev/null"), writes=(work.parent,)).get("settings")
    except TrainingFailed:
        if _now() - began >= seconds:
            raise TrainingFailed(f"it takes longer than {seconds:g} s to run without training") from None
        raise
    finally:
        shutil.rmtree(work.parent)
    if not isinstance(found, list):
        raise ValueError("no settings")
    return found


# -- what is taken out -------------------------------------------------------------------------------------------------


def without_training(engine: Engine, foreteller: Foreteller) -> None:
    """Patch this process, before the engine does, so that nothing expensive happens in it. Call it once."""
    torch.compiler.set_stance("force_eager")
    nn.Module.__call__ = _answering(nn.Module.__call__)
    loaders.Pass._begin = _one_of_each_size(loaders.Pass._begin)  # type: ignore[assignment]
    plain_hook = Optimizer.profile_hook_step
    Optimizer.profile_hook_step = staticmethod(lambda step: plain_hook(_standing(step)))  # type: ignore[assignment]
    _no_gradients(engine, foreteller)
    _made_up_losses(engine, foreteller)


def _answering(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A module's call that computes only what it was not asked before: by mode, and by the shapes of what it is given."""
    known: WeakKeyDictionary[nn.Module, dict[Any, Any]] = WeakKeyDictionary()
    inside = False

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside or next(self.parameters(), None) is None:
            return plain(self, *args, **kwargs)
        answers = known.setdefault(self, {})
        asked = (self.training, torch.is_grad_enabled(), *map(_form, tree_leaves((args, kwargs))))
        if asked not in answers:
            inside = True
            try:
                answers[asked] = tree_map_only(Tensor, _cut, plain(self, *args, **kwargs))
            finally:
                inside = False
        return tree_map_only(Tensor, torch.clone, answers[asked])

    return call


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    return value if value is None or isinstance(value, bool | str) else type(value)


def _cut(answer: Tensor) -> Tensor:
    return answer.detach().clone().requires_grad_(answer.requires_grad)


def _one_of_each_size(plain: Callable[[loaders.Pass], Iterator[Any]]) -> Callable[[loaders.Pass], Iterator[Any]]:
    def begin(each: loaders.Pass) -> Iterator[Any]:
        """As many batches as the pass has, of the right sizes. A stream without indices is read as it is."""
        loader = each.loader
        if isinstance(loader.dataset, IterableDataset):
            yield from plain(each)
            return
        fetcher = _DatasetKind.create_fetcher(
            loader._dataset_kind, loader.dataset, loader._auto_collation, loader.collate_fn, loader.drop_last
        )
        fetched: dict[int, Any] = {}
        for indices in loaders.pass_indices(each, each.number):
            size = len(indices) if isinstance(indices, list | tuple) else 0
            if size not in fetched:
                fetched[size] = fetcher.fetch(indices)
            yield tree_map_only(Tensor, torch.clone, fetched[size])

    return begin


def _standing(step: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's step that changes nothing. Hooks and counts are round it; a closure is evaluated once."""

    @functools.wraps(step)
    def stand(self: Optimizer, closure: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not callable(closure):
            return None
        with torch.enable_grad():
            return closure()

    return stand


def _no_gradients(engine: Engine, foreteller: Foreteller) -> None:
    """Backward passes end at once and leave zeros; what would go over all gradients does not."""
    zeros: dict[Tensor, Tensor] = {}
    steps = 0

    def backward(*args: Any, **kwargs: Any) -> None:
        for parameter in engine.trained():
            if parameter.grad is None and parameter.requires_grad:
                known = zeros.get(parameter)
                parameter.grad = (
                    known if known is not None else zeros.setdefault(parameter, torch.zeros_like(parameter))
                )

    def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(map(torch.zeros_like, [inputs] if isinstance(inputs, Tensor) else inputs))

    def unscale(self: Any, optimizer: Any, inverse: Any, found: Tensor, *args: Any) -> dict[torch.device, Tensor]:
        nonlocal steps
        steps += 1
        overflow = not foreteller.improving and steps % OVERFLOWS == 0
        return {found.device: torch.full_like(found, float(overflow))}

    torch.autograd.backward, torch.autograd.grad = backward, grad  # type: ignore[assignment]
    torch.amp.GradScaler._unscale_grads_ = unscale  # type: ignore[assignment]
    for place in (nn.utils, nn.utils.clip_grad):
        vars(place).update(clip_grad_norm_=lambda *a, **k: torch.ones(()), clip_grad_value_=lambda *a, **k: None)


def _made_up_losses(engine: Engine, foreteller: Foreteller) -> None:
    """What the script reads from a tensor as a `float` takes its course."""
    plain_item, plain_float = Tensor.item, Tensor.__float__

    def item(self: Tensor) -> Any:
        value = plain_item(self)
        return value * foreteller.share(engine) if isinstance(value, float) else value

    def as_float(self: Tensor) -> float:
        return plain_float(self) * (foreteller.share(engine) if self.is_floating_point() else 1.0)

    Tensor.item, Tensor.__float__ = item, as_float  # type: ignore[assignment]
    ReduceLROnPlateau._is_better = lambda self, value, best: foreteller.improving
