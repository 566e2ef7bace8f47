"""Runs an unmodified script and sees its iterations: one engine under recording, preflight and replay.

An *iteration* is one turn of the loop that encloses the optimizers' steps; its *boundary* is the loop's top, where scheduler,
scaler and averages of the turn before have run. `step` counts completed iterations. At a boundary the engine asks its
`Conductor` what to do: capture the state, go somewhere else, or stop. Everything random in iteration t is drawn from f(seed, t).

The engine patches this process (torch, the clocks, the loaders) and is made for a process that runs one script and ends.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
import traceback
import weakref
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from labapex.errors import MalformedInput, TrainingFailed
from labapex.proof import loaders, loops
from labapex.proof.capture import Capture, Memory
from labapex.proof.clock import mark_clocks
from labapex.proof.declared import Declared
from labapex.proof.instrument import execute
from labapex.proof.liveness import live_names
from labapex.proof.loops import Each, Loop, Turns
from labapex.proof.randomness import derive, mix_in, seed_everything
from labapex.proof.restore import Restore, stale
from labapex.proof.state import Buffers, State
from labapex.protocol.contract import Contract

L = TypeVar("L", bound=Loop)


class Finished(BaseException):
    """Raised through the script when there is nothing more to do. Not an `Exception`: the script must not catch it."""


class Conductor(Protocol):
    """What an engine is run for."""

    def search(self, engine: Engine, loop: Loop) -> None:
        """A loop's top while it is not known which loop's turns are the iterations."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        """`engine.step` iterations are complete. `at_top`: the loop may go on; else it is left, at this step or anew."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        """Iteration `step` is complete: the sum of its losses, and the digests of the batches it took."""

    def forward(self, engine: Engine) -> None:
        """A loss is about to be propagated backwards."""

    def stepped(self, engine: Engine, optimizer: Optimizer) -> None:
        """An optimizer's step is complete."""


class Engine:
    """One script in one process. `loop` is the name of the loop whose turns are iterations; None while it is unknown."""

    def __init__(
        self,
        *,
        root: Path,
        script: str,
        args: list[str],
        seed: str,
        loop: str | None,
        gradients: bool,
        conductor: Conductor,
    ) -> None:
        self.root = root.resolve()
        self.script = self.root / script
        self.args = args
        self.seed = seed
        self.loop = loop
        self.discovering = loop is None
        self.conductor = conductor
        self.step = 0
        self.memory = Memory(gradients)
        self.numbering = loaders.Numbering(seed)
        self.numbering.consumed = lambda digest: self.batches.append(digest)
        self.numbering.created = loops.collect
        self.declared = Declared(self)
        self.gradients_survive = False
        self.loops: dict[int, list[Loop]] = {}
        self.current: Loop | None = None  # the iteration loop, once it runs
        self.optimizers: list[weakref.ref[Optimizer]] = []
        self.batches: list[bytes] = []
        self._losses: list[Tensor] = []
        self._turning = False  # an iteration is under way
        self._bounded = -1  # the last step whose boundary was announced
        self._zeroed = True
        self._stepping = False
        self._places: dict[str, bool] = {}  # file names, and whether they are in the script's folder
        self._foreign: dict[str, ModuleType] = {}  # the thousands of modules that are not the script's

    @classmethod
    def under(cls, contract: Contract, root: Path, conductor: Conductor, seed: str | None = None) -> Engine:
        """An engine for a contract's script in the folder `root`; `seed` in place of the contract's."""
        return cls(
            root=root,
            script=contract.script,
            args=list(contract.args),
            seed=seed or contract.seed,
            loop=contract.facts.loop,
            gradients=contract.facts.gradients_are_state,
            conductor=conductor,
        )

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self, threads: int) -> None:
        """Run the script to its end. Raises `TrainingFailed` with the script's own traceback."""
        os.chdir(self.root)
        torch.set_num_threads(threads)
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.benchmark = False
        mark_clocks()
        mix_in(self.seed)
        loaders.install(self.numbering)
        self._hook()
        seed_everything(derive(self.seed, "start"))
        gc.freeze()  # what was imported by now is never garbage; each capture would have it searched again
        try:
            execute(self.script, self.root, self.args, self)
            self.declared.resume()
        except Finished:
            return
        except SystemExit as stop:
            if stop.code not in (None, 0):
                raise TrainingFailed(f"the script ended with exit code {stop.code}") from None
        except (MalformedInput, TrainingFailed):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a script raises is its own, and is told to its author
            raise TrainingFailed(self._traceback(error)) from None

    def _traceback(self, error: BaseException) -> str:
        """The traceback as the script's author would see it: without our frames, with paths relative to the job."""
        summary = traceback.TracebackException.from_exception(error)
        part: traceback.TracebackException | None = summary
        while part is not None:
            first = next((n for n, f in enumerate(part.stack) if Path(f.filename).is_relative_to(self.root)), 0)
            part.stack = traceback.StackSummary.from_list(list(part.stack)[first:])
            part = part.__cause__ or part.__context__
        return "".join(summary.format()).replace(f"{self.root}/", "")

    # -- what the instrumented script calls ------------------------------------------------------------------------

    def each(self, name: str, iterable: Any) -> Each:
        frame = loops.caller(1)
        return self._enter(Each(self, name, frame, iterable), frame)

    def turns(self, name: str) -> Turns:
        frame = loops.caller(1)
        return self._enter(Turns(self, name, frame), frame)

    twin = staticmethod(loops.twin)

    def _enter(self, loop: L, frame: FrameType) -> L:
        self.loops.setdefault(id(frame), []).append(loop)
        return loop

    # -- loops -----------------------------------------------------------------------------------------------------

    def top(self, loop: Loop) -> None:
        self.declared.resume()
        if self.loop is None:
            self.conductor.search(self, loop)
        if loop.name != self.loop:
            return
        self.current = loop
        self._complete()
        if self._bounded != self.step:
            self._bounded = self.step
            self.conductor.boundary(self, at_top=True)
        if loop.count == 0:
            loop.began = self.step
        self._begin_turn(self.step)

    def left(self, loop: Loop) -> None:
        if loop is self.current:
            self._leave()
        self.declared.left(loop)
        siblings = self.loops[id(loop.frame)]
        siblings.remove(loop)
        if not siblings:
            del self.loops[id(loop.frame)]

    def _leave(self) -> None:
        """The iteration loop ends; for this last look it still counts as running."""
        if self._turning and (self._losses or self.declared.losses):
            self._complete()  # left by `break` after a whole iteration
        self._turning = False
        self._bounded = self.step
        self.conductor.boundary(self, at_top=False)
        self.current = None

    def _begin_turn(self, step: int) -> None:
        self._turning = True
        self._zeroed = False
        self.batches = []
        self._losses, self.declared.losses = [], []
        self.reseed(step)

    def reseed(self, step: int) -> None:
        seed_everything(derive(self.seed, "step", step))

    def _complete(self) -> None:
        if not self._turning:
            return
        self._turning = False
        losses = self.declared.losses or self._losses
        loss = math.fsum(float(part) for part in losses) if losses else math.nan
        self._losses, self.declared.losses = [], []
        self.step += 1
        self.conductor.iteration(self.step - 1, loss, self.batches)

    # -- state -----------------------------------------------------------------------------------------------------

    def capture(self, buffers: Buffers | None = None) -> State:
        """The whole state at this boundary, in memory of `buffers` where they are given."""
        walk = Capture(self.memory, self._known)
        prepared = [walk.node(f"prepared.{n}", o, within=True) for n, o in enumerate(self.declared.objects())]
        running = self._running()
        frames = [walk.variables(f"f{n}:{f.f_code.co_qualname}", self._live(f)) for n, f in enumerate(self._frames())]
        modules = {name: walk.variables(name, names) for name, names in self._modules().items()}
        optimizers = [walk.node(f"optimizer.{n}", o) for n, o in enumerate(self._alive_optimizers())]
        return walk.finish(
            {
                "step": self.step,
                "loops": [loop.place() for loop in running],
                "loaders": self.numbering.loaders,
                "passes": sorted(map(list, self.numbering.passes.items())),
                "frames": frames,
                "modules": modules,
                "optimizers": optimizers,
                "changed": sorted(self.memory.changed),
                **({"prepared": prepared} if prepared else {}),
            },
            buffers,
        )

    def restore(self, state: State) -> bool:
        """Go to the boundary at which `state` was captured. False where only a fresh process can.

        Raises `MalformedInput` for a state that does not fit this script.
        """
        try:
            return self._restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise MalformedInput(f"the state does not fit the script: {type(error).__name__}: {error}") from error

    def _restore(self, state: State) -> bool:
        structure = state.structure
        running = self._running()
        if [loop.name for loop in running] != [name for name, _, _ in structure["loops"]]:
            return False
        changed = set(structure["changed"])
        if not self.memory.changed <= changed:
            return False  # what this process changed since its start, the state takes for untouched
        for loop, (_, count, passes) in zip(running, structure["loops"], strict=True):
            began = int(structure["step"]) - count if loop is self.current else None
            if not loop.seek(count, passes, began):
                return False
        self.numbering.loaders = structure["loaders"]
        self.numbering.passes = {str(stream): int(number) for stream, number in structure["passes"]}
        self.memory.changed = changed
        restore = Restore(state, self._known)
        for n, (prepared, node) in enumerate(zip(self.declared.objects(), structure.get("prepared", []), strict=True)):
            restore.node(node, f"prepared.{n}", prepared)
        frames = self._frames()
        if len(frames) != len(structure["frames"]):
            return False
        for n, (frame, nodes) in enumerate(zip(frames, structure["frames"], strict=True)):
            live = self._live(frame)
            _bind(frame, restore.variables(nodes, f"f{n}:{frame.f_code.co_qualname}", live), stale(live, nodes))
        modules = self._modules()
        for name, nodes in structure["modules"].items():
            if name not in modules:
                raise MalformedInput(f"the script has no module {name}")
            names = sys.modules[name].__dict__
            names.update(restore.variables(nodes, name, names))
            for old in stale(modules[name], nodes):
                del names[old]
        for n, (optimizer, node) in enumerate(zip(self._alive_optimizers(), structure["optimizers"], strict=True)):
            restore.node(node, f"optimizer.{n}", optimizer)
        self.pretend(int(structure["step"]))
        return True

    def aim(self, begin: int, number: int) -> None:
        """Let the next turn take what turn `number` of this run of the loop took, and be iteration `begin` + `number`."""
        loop = self.current
        assert loop is not None
        back = loop.count - number
        passes = [[stream, of, max(0, position - back)] for stream, of, position in loop.place()[2]]
        loop.seek(number, passes, begin)
        self.pretend(begin + number)

    def pretend(self, step: int) -> None:
        """Let the next turn be iteration `step`, as far as randomness goes, whatever state the variables are in."""
        self.step, self._bounded = step, step

    def _running(self) -> list[Loop]:
        assert self.current is not None
        found = loops.active(self.loops, self.current.frame)
        return found[: found.index(self.current) + 1]

    def _frames(self) -> list[FrameType]:
        """The script's function frames from the iteration loop outwards, outermost first; module code is not among them."""
        assert self.current is not None
        frames: list[FrameType] = []
        frame = self.current.frame
        while frame is not None:
            if self._ours(frame) and frame.f_code.co_name != "<module>":
                frames.insert(0, frame)
            frame = frame.f_back
        return frames

    def _live(self, frame: FrameType) -> dict[str, Any]:
        live = live_names(frame.f_code, frame.f_lasti)
        return {name: value for name, value in frame.f_locals.items() if name in live}

    def _modules(self) -> dict[str, dict[str, Any]]:
        """Globals of the script's modules; of one whose own code is running, only those that are still read."""
        running: dict[int, frozenset[str]] = {}
        frame = self.current.frame if self.current is not None else None
        while frame is not None:
            if frame.f_code.co_name == "<module>":
                running[id(frame.f_globals)] = live_names(frame.f_code, frame.f_lasti)
            frame = frame.f_back
        found: dict[str, dict[str, Any]] = {}
        for name, module in list(sys.modules.items()):
            if module is None or self._foreign.get(name) is module:
                continue
            if not self._own(name):
                self._foreign[name] = module
                continue
            live = running.get(id(module.__dict__))
            found[name] = {k: v for k, v in module.__dict__.items() if live is None or k in live}
        return found

    def _own(self, module: str) -> bool:
        file = getattr(sys.modules.get(module), "__file__", None)
        return file is not None and self._inside(file)

    def _known(self, module: str) -> bool:
        """Whether objects of this module's classes are looked into."""
        return self._own(module) or module in self.declared.modules

    def _ours(self, frame: FrameType) -> bool:
        return self._inside(frame.f_code.co_filename)

    def _inside(self, file: str) -> bool:
        """Whether a file is the script's. Asked for each module at each boundary; a path is taken apart only once."""
        if file not in self._places:
            self._places[file] = Path(file).is_relative_to(self.root)
        return self._places[file]

    def _alive_optimizers(self) -> list[Optimizer]:
        return [o for o in (ref() for ref in self.optimizers) if o is not None]

    def trained(self) -> list[Tensor]:
        """The parameters of the script's optimizers, and those that it prepared."""
        found = [p for o in self._alive_optimizers() for g in o.param_groups for p in g["params"]]
        return list({id(p): p for p in [*found, *self.declared.parameters()]}.values())

    def namespaces(self) -> list[dict[str, Any]]:
        """All variables of the script, those of its running functions first, innermost first."""
        return [dict(f.f_locals) for f in reversed(self._frames())] + list(self._modules().values())

    def took_backward(self) -> bool:
        """Whether a loss was propagated backwards in this turn."""
        return bool(self._losses)

    # -- hooks into torch ------------------------------------------------------------------------------------------

    def _hook(self) -> None:
        plain_backward, plain_init = Tensor.backward, Optimizer.__init__
        plain_scale = torch.amp.GradScaler.scale
        engine = self

        def backward(self: Tensor, *args: Any, **kwargs: Any) -> None:
            engine._backward(self)
            plain_backward(self, *args, **kwargs)

        def scale(self: Any, outputs: Any) -> Any:
            scaled = plain_scale(self, outputs)
            if isinstance(outputs, Tensor):
                scaled._labapex_unscaled = outputs.detach()
            return scaled

        def init(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            plain_init(self, *args, **kwargs)
            engine.optimizers.append(weakref.ref(self))

        def zeroing(plain: Any) -> Any:
            def zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
                engine._zeroed = True
                plain(self, *args, **kwargs)

            return zero_grad

        Tensor.backward = backward
        torch.amp.GradScaler.scale = scale
        Optimizer.__init__ = init
        Optimizer.zero_grad = zeroing(Optimizer.zero_grad)
        nn.Module.zero_grad = zeroing(nn.Module.zero_grad)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)

    def _backward(self, tensor: Tensor) -> None:
        if not self._zeroed:
            self._zeroed = True
            if any(p.grad is not None for p in self.trained()):
                self.gradients_survive = True
                if not self.discovering and not self.memory.gradients:
                    raise TrainingFailed(
                        "gradients survive from one iteration to the next only late in this run: call zero_grad() in "
                        "each iteration, or accumulate from the first iteration on, so that the preflight sees it"
                    )
        loss = getattr(tensor, "_labapex_unscaled", tensor.detach())
        if loss.numel() != 1 or (self._stepping and self._losses):
            return  # not a loss, or a closure evaluated again within one optimizer step
        self._losses.append(loss)
        self.conductor.forward(self)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepping = True

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepping = False
        self.conductor.stepped(self, optimizer)


def _bind(frame: FrameType, values: dict[str, Any], unbound: list[str]) -> None:
    """Assign local variables of a frame that is suspended in a call, cells included, and unbind others."""
    names = frame.f_locals  # each access reads the frame anew
    names.update(values)
    for name in unbound:
        del names[name]
    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(1))
