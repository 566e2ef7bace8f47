"""Runs an unmodified script and sees its iterations: one engine under recording, preflight and replay.

An *iteration* is one turn of the loop that encloses the optimizers' steps; its *boundary* is the loop's top, where scheduler,
scaler and averages of the turn before have run. `step` counts completed iterations. At a boundary the engine asks its
`Conductor` what to do: capture the state, go somewhere else, or stop. Everything random in iteration t is drawn from f(seed, t).

The engine patches this process (torch, the clocks, the loaders) and is made for a process that runs one script and ends.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from labapex.errors import LabApexError, MalformedInput, TrainingFailed
from labapex.proof import frameworks, hooks, loaders, loggers, loops, packages
from labapex.proof.block import Buffers
from labapex.proof.capture import Capture, Memory
from labapex.proof.clock import mark_clocks
from labapex.proof.declared import Declared
from labapex.proof.instrument import execute
from labapex.proof.loops import Each, Loop, Turns
from labapex.proof.nodes import in_order
from labapex.proof.randomness import derive, mix_in, seed_everything
from labapex.proof.restore import Restore, stale
from labapex.proof.scope import Scope, bind, live
from labapex.proof.settings import settings_digest
from labapex.proof.state import State
from labapex.protocol.contract import Contract

L = TypeVar("L", bound=Loop)


class Finished(BaseException):
    """Raised through the script when there is nothing more to do. Not an `Exception`: the script must not catch it."""


@dataclass(frozen=True)
class Heading:
    """A later boundary, in this or another call of the function that has the training loop. On the way there, loops that train
    have one turn: what they leave behind is bound then, and its values are no matter, as a state will be put in."""

    loops: list[str]  # their names, outermost first
    calls: list[str]
    counts: list[int]  # turns that those loops had begun
    training: set[str]  # names of loops, of these and of those that ran when it was set out

    def allows(self, loop: Loop, place: tuple[list[str], list[str]]) -> bool:
        """Whether a loop that trains may begin another turn."""
        names, calls = place
        depth = len(names)
        encloses = depth < len(self.loops) and names == self.loops[:depth] and calls == self.calls[: len(calls)]
        return loop.count < (self.counts[depth - 1] if encloses else 1)


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
        self.told: Callable[[str, float], None] = lambda name, value: None  # who hears what the script tells loggers
        self.numbering = loaders.Numbering(seed)
        self.numbering.consumed = lambda digest: self.batches.append(digest)
        self.numbering.created = loops.collect
        self.numbering.looping = lambda: bool(self.loops)
        self.declared = Declared(self)
        self.scope = Scope(self.root, self.declared.modules)
        self.gradients_survive = False
        self.loops: dict[int, list[Loop]] = {}
        self.current: Loop | None = None  # the iteration loop, once it runs
        self.heading: Heading | None = None  # where the script goes on to by itself, its training left out
        self.optimizers: list[weakref.ref[Optimizer]] = []
        self.batches: list[bytes] = []
        self._losses: list[Tensor] = []
        self._turning = False  # an iteration is under way
        self._bounded = -1  # the last step whose boundary was announced
        self._zeroed = True
        self._stepping = False

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
        packages.admit()
        torch.set_num_threads(threads)
        self._hold_algorithms()
        mark_clocks()
        mix_in(self.seed)
        loaders.install(self.numbering)
        frameworks.install(self.numbering)
        loggers.install(self.told)
        hooks.install(self)
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

    def top(self, loop: Loop) -> bool:
        self.declared.resume()
        if self.loop is None:
            self.conductor.search(self, loop)
        if self.heading is not None and loop.name in self.heading.training:
            place = self._place(loop)
            if place != (self.heading.loops, self.heading.calls):
                return self.heading.allows(loop, place)
            self.heading, self._bounded = None, -1  # there it is
        if loop.name != self.loop:
            return True
        self.current = loop
        self._complete()
        if self._bounded != self.step:
            self._bounded = self.step
            self.conductor.boundary(self, at_top=True)
            if self.heading is not None:
                self.current = None
                return loop.count == 0
        if loop.count == 0:
            loop.began = self.step
        self._begin_turn(self.step)
        return True

    def left(self, loop: Loop) -> None:
        if loop is self.current:
            if isinstance(sys.exc_info()[1], LabApexError | Finished):  # ours, on its way out through the script
                self.current = None
            else:
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
        self._hold_algorithms()
        self.reseed(step)

    @staticmethod
    def _hold_algorithms() -> None:
        """On a GPU: algorithms that repeat themselves alone, whatever the script asked for. What has none raises, by name:
        merely warned of, it would train to a state that no replay reaches."""
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

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
        walk = Capture(self.memory, self.scope.known)
        prepared = [walk.node(f"prepared.{n}", o, within=True) for n, o in enumerate(self.declared.objects())]
        running = self._running()
        assert self.current is not None
        calls = self._place(self.current)[1]
        frames = [
            walk.variables(f"f{n}:{f.f_code.co_qualname}", live(f))
            for n, f in enumerate(self.scope.frames(self._frame))
        ]
        modules = {name: walk.variables(name, names) for name, names in in_order(self.scope.modules(self._frame))}
        optimizers = [walk.node(f"optimizer.{n}", o) for n, o in enumerate(self.alive_optimizers())]
        reading = [walk.node(f"reading.{n}", p) for n, p in enumerate(_passes(running))]
        return walk.finish(
            {
                "step": self.step,
                "loops": [loop.place() for loop in running],
                "passes": sorted(map(list, self.numbering.passes.items())),
                "frames": frames,
                "modules": modules,
                "optimizers": optimizers,
                "reading": reading,
                "changed": sorted(self.memory.changed),
                **({"calls": calls} if calls else {}),
                **({"prepared": prepared} if prepared else {}),
            },
            buffers,
        )

    def settings(self) -> str:
        """What a leaf says of the optimizers' hyper-parameters at this boundary."""
        return settings_digest(self.alive_optimizers())

    def restore(self, state: State) -> bool:
        """Go to the boundary at which `state` was captured. False where only a fresh process can, or where the script has to go
        on first, to another call of the loop or by one turn: then it is headed for there, and the boundary is announced.

        Raises `MalformedInput` for a state that does not fit this script.
        """
        try:
            return self._restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise MalformedInput(f"the state does not fit the script: {type(error).__name__}: {error}") from error

    def _restore(self, state: State) -> bool:
        structure = state.structure
        running = self._running()
        assert self.current is not None
        there = [name for name, _, _ in structure["loops"]], structure.get("calls", [])
        step = int(structure["step"])
        untried = step > 0 and self.current.count == 0 and frameworks.lazy(self.current.name)
        if untried or self._place(self.current) != there:
            if step > self.step:
                counts = [int(count) for _, count, _ in structure["loops"]]
                self.heading = Heading(*there, counts, {loop.name for loop in running} | {*there[0]})
            return False
        changed = set(structure["changed"])
        if not self.memory.changed <= changed:
            return False  # what this process changed since its start, the state takes for untouched
        for loop, (_, count, passes) in zip(running, structure["loops"], strict=True):
            began = step - count if loop is self.current else None
            if not loop.seek(count, passes, began):
                return False
        self.numbering.passes = {str(stream): int(number) for stream, number in structure["passes"]}
        self.memory.changed = changed
        restore = Restore(state, self.scope.known)
        for n, (prepared, node) in enumerate(zip(self.declared.objects(), structure.get("prepared", []), strict=True)):
            restore.node(node, f"prepared.{n}", prepared)
        frames = self.scope.frames(self._frame)
        if len(frames) != len(structure["frames"]):
            return False
        for n, (frame, nodes) in enumerate(zip(frames, structure["frames"], strict=True)):
            read = live(frame)
            bind(frame, restore.variables(nodes, f"f{n}:{frame.f_code.co_qualname}", read), stale(read, nodes))
        modules = self.scope.modules(self._frame)
        for name, nodes in structure["modules"].items():
            if name not in modules:
                raise MalformedInput(f"the script has no module {name}")
            names = sys.modules[name].__dict__
            names.update(restore.variables(nodes, name, names))
            for old in stale(modules[name], nodes):
                del names[old]
        for n, (optimizer, node) in enumerate(zip(self.alive_optimizers(), structure["optimizers"], strict=True)):
            restore.node(node, f"optimizer.{n}", optimizer)
        for n, (each, node) in enumerate(zip(_passes(running), structure["reading"], strict=True)):
            restore.node(node, f"reading.{n}", each)
        self.pretend(step)
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

    def _place(self, loop: Loop) -> tuple[list[str], list[str]]:
        """The loops from the outermost to this one, and the calls that led to its function."""
        chain = loops.active(self.loops, loop.frame)
        return [each.name for each in chain[: chain.index(loop) + 1]], self.scope.calls(loop.frame)

    @property
    def _frame(self) -> FrameType | None:
        """Of the iteration loop, once it runs."""
        return self.current.frame if self.current is not None else None

    def alive_optimizers(self) -> list[Optimizer]:
        return [o for o in (ref() for ref in self.optimizers) if o is not None]

    def trained(self) -> list[Tensor]:
        """The parameters of the script's optimizers, and those that it prepared."""
        found = [p for o in self.alive_optimizers() for g in o.param_groups for p in g["params"]]
        return list({id(p): p for p in [*found, *self.declared.parameters()]}.values())

    def namespaces(self) -> list[dict[str, Any]]:
        """All variables of the script, those of its running functions first, innermost first."""
        return [dict(f.f_locals) for f in reversed(self.scope.frames(self._frame))] + list(
            self.scope.modules(self._frame).values()
        )

    def took_backward(self) -> bool:
        """Whether a loss was propagated backwards in this turn."""
        return bool(self._losses)

    # -- what torch tells (`hooks`) ----------------------------------------------------------------------------------

    def zeroed(self) -> None:
        self._zeroed = True

    def backward(self, loss: Tensor) -> None:
        if not self._zeroed:
            self._zeroed = True
            if any(p.grad is not None for p in self.trained()):
                self.gradients_survive = True
                if not self.discovering and not self.memory.gradients:
                    raise TrainingFailed(
                        "gradients survive from one iteration to the next only late in this run: call zero_grad() in "
                        "each iteration, or accumulate from the first iteration on, so that the preflight sees it"
                    )
        if loss.numel() != 1 or (self._stepping and self._losses):
            return  # not a loss, or a closure evaluated again within one optimizer step
        self._losses.append(loss)
        self.conductor.forward(self)

    def stepping(self, optimizer: Optimizer) -> None:
        self._stepping = True

    def stepped(self, optimizer: Optimizer) -> None:
        self._stepping = False
        self.conductor.stepped(self, optimizer)


def _passes(running: list[Loop]) -> list[loaders.Pass]:
    return [each for loop in running for each in loop.passes]
