"""Lies at work: a recorder that meddles with the honest run that it records."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from tests.attacks import victim
from tests.attacks.lies.telling import Job, Meddler, enter, run
from torch import Tensor

from labapex.proof import loaders, record
from labapex.proof.runtime import Engine
from labapex.proof.state import State


def at_work(rule: str, **more: Any) -> Callable[[type[Meddler]], type[Meddler]]:
    def enlist(kind: type[Meddler]) -> type[Meddler]:
        enter(rule, kind, lambda job: run(job, kind(job)), **more)
        return kind

    return enlist


def trained(engine: Engine) -> list[Tensor]:
    """The parameters in the hands of the script's optimizers: of each layer first its weight, then its bias."""
    return [p for o in engine.alive_optimizers() for g in o.param_groups for p in g["params"]]


def stolen_parameters(job: Job) -> list[Tensor]:
    last = State.load(job.stolen / f"{len(list(job.stolen.glob('*.safetensors'))) - 1}.safetensors")
    names = sorted(last.parameters, key=lambda name: (name.rpartition("/")[0], name.endswith("bias")))
    return [last.tensors[n] for n in names]


@at_work("initialisation")
class lucky_initial_weights(Meddler):
    """Starts from a stolen, trained model and calls it a lucky draw."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if engine.step == 0:
            for p, value in zip(trained(engine), self.weights(trained(engine)), strict=True):
                p.data.copy_(value)
        super().boundary(engine, at_top=at_top)

    def weights(self, fresh: list[Tensor]) -> list[Tensor]:
        return stolen_parameters(self.job)


@at_work("initialisation")
class rank_mapped_initial_weights(lucky_initial_weights):
    """Starts from the genuine fresh draws, put into the order of a stolen model: any test of their distribution passes."""

    def weights(self, fresh: list[Tensor]) -> list[Tensor]:
        mapped = []
        for own, theirs in zip(fresh, stolen_parameters(self.job), strict=True):
            ranks = theirs.flatten().argsort().argsort()
            mapped.append(own.data.flatten().sort().values[ranks].reshape(own.shape))
        return mapped


@at_work("point-loss")
class directed_retraining(Meddler):
    """Trains, and after each step pulls the weights a little towards a stolen model."""

    def stepped(self, engine: Engine, optimizer: Any) -> None:
        for p, target in zip(trained(engine), stolen_parameters(self.job), strict=True):
            p.data.lerp_(target, 0.1)


@at_work("replay")
class sub_tolerance_drift(Meddler):
    """Trains honestly and drifts by a millionth before each commitment: below any threshold, each time."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if engine.step in self.due[1:] and (at_top or engine.step == self.total):
            for p in trained(engine):
                p.data.mul_(1 + 1e-6)
        super().boundary(engine, at_top=at_top)


@at_work("point-loss")
class steps_of_half_the_length(Meddler):
    """Lets the optimizer's groups say the agreed learning rate, and halves every update."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        self.start = [p.detach().clone() for p in trained(engine)]
        super().boundary(engine, at_top=at_top)

    def stepped(self, engine: Engine, optimizer: Any) -> None:
        for p, before in zip(trained(engine), self.start, strict=True):
            p.data.lerp_(before, 0.5)


@at_work("point-loss")
class half_of_the_iterations(Meddler):
    """Leaves every second update out and logs the loss that it saw."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        self.start = [p.detach().clone() for p in trained(engine)]
        super().boundary(engine, at_top=at_top)

    def stepped(self, engine: Engine, optimizer: Any) -> None:
        if engine.step % 2:
            for p, before in zip(trained(engine), self.start, strict=True):
                p.data.copy_(before)


@at_work("initialisation")
class seed_grinding(Meddler):
    """Trains under another seed, the best of many that it tried."""

    def prepare(self, engine: Engine) -> None:
        engine.seed = engine.numbering.seed = "9" * 64


@at_work("batch-order")
class order_grinding(Meddler):
    """Starts as agreed and takes the data in an order of its own choice."""

    def prepare(self, engine: Engine) -> None:
        engine.numbering.seed = "5" * 64


@at_work("batch-order")
class easy_data_first(Meddler):
    """Takes the data in an order from easy to hard, which learns faster at first."""

    def prepare(self, engine: Engine) -> None:
        loaders.order = lambda sampler, stream: iter([list(range(n, n + 4)) for n in range(0, 24, 4)])


@at_work("point-loss")
class other_augmentation(Meddler):
    """Starts and orders as agreed, and draws noise and dropout from a seed of its own."""

    def prepare(self, engine: Engine) -> None:
        engine.reseed = lambda step: torch.default_generator.manual_seed(step)  # type: ignore[method-assign]


@at_work("point-loss")
class jittered_losses(Meddler):
    """Logs the true losses with a noise of a thousandth on them."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        super().iteration(step, loss * (1 + 1e-3 * math.sin(step + 1)), batches)


@at_work("point-loss", false_class=True)
class better_losses_under_a_false_class(Meddler):
    """Says that his host is of another kind, so that less is compared, and logs better losses where it is not."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        super().iteration(step, 0.9 * loss if step not in self.due else loss, batches)


@at_work("point-loss", false_class=True)
class moved_weights_and_better_losses_under_a_false_class(better_losses_under_a_false_class):
    """Moves the weights by a millionth before each commitment besides, so that no segment is reproduced exactly."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if engine.step in self.due and engine.step:
            for p in trained(engine):
                p.data.mul_(1 + 1e-6)
        super().boundary(engine, at_top=at_top)


@at_work("point-loss", false_class=True)
class no_training_under_a_false_class(Meddler):
    """Says that his host is of another kind, undoes every update, and logs what the untrained model gives."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        self.start = [p.detach().clone() for p in trained(engine)]
        super().boundary(engine, at_top=at_top)

    def stepped(self, engine: Engine, optimizer: Any) -> None:
        for p, before in zip(trained(engine), self.start, strict=True):
            p.data.copy_(before)


@at_work("point-loss")
class rounded_losses(Meddler):
    """Logs the true losses to four digits, as from somebody's console."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        super().iteration(step, float(f"{loss:.4f}"), batches)


@at_work("point-loss")
class losses_that_are_no_numbers(Meddler):
    """Logs NaN, which is neither above nor below any limit."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        super().iteration(step, math.nan, batches)


@at_work("point-loss")
class losses_without_end(Meddler):
    """Logs infinity from the first iteration on."""

    def iteration(self, step: int, loss: float, batches: list[bytes]) -> None:
        super().iteration(step, math.inf, batches)


@at_work("replay")
class parameters_that_are_no_numbers(Meddler):
    """Turns the weights to NaN in the first epoch: every later loss is NaN for anybody, and need not be computed."""

    def stepped(self, engine: Engine, optimizer: Any) -> None:
        if engine.step == 2:
            for p in trained(engine):
                p.data.fill_(math.nan)


class Exchanger(Meddler):
    """Exchanges the state once, between two leaves; all that follows is true, and replays exactly."""

    when = 8  # in mid-epoch: the first segment of each epoch is where equal updates are looked for

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if at_top and engine.step == self.when:
            self.exchange(engine)
        super().boundary(engine, at_top=at_top)

    def exchange(self, engine: Engine) -> None:
        raise NotImplementedError


@at_work("replay", every=1, draws=0)
class a_learning_rate_of_zero_from_here_on(Exchanger):
    """Commits once to a state whose optimizer has a learning rate of zero: no later update needs to be computed."""

    def exchange(self, engine: Engine) -> None:
        for optimizer in engine.alive_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = 0.0


@at_work("replay", every=1, draws=0, false_class=True)
class a_learning_rate_of_zero_under_a_false_class(a_learning_rate_of_zero_from_here_on):
    """Does the same, and says that his host is of another kind, so that not every bit has to be equal."""


@at_work("replay", every=1, draws=0, job=victim.LONG_RUN, foretold=True)
class a_gentler_rate_for_a_while(Meddler):
    """Lowers the learning rate for three iterations in mid-run, says so in the leaves, and takes it back."""

    def boundary(self, engine: Engine, *, at_top: bool) -> None:
        if at_top and engine.step in (43, 46):
            (group,) = engine.alive_optimizers()[0].param_groups
            if engine.step == 43:
                self.agreed = group["lr"]
            group["lr"] = self.agreed * (0.7 if engine.step == 43 else 1.0)
        super().boundary(engine, at_top=at_top)


@at_work("replay", every=1, draws=0)
class weights_that_are_no_numbers_from_here_on(Exchanger):
    """Commits once to weights that are NaN, claiming a usual update: every later state and loss is NaN, without work."""

    def prepare(self, engine: Engine) -> None:
        true = record.parameter_change
        usual = iter([0.1])
        record.parameter_change = lambda before, after: (  # type: ignore[assignment]
            next(usual, None) if (norm := true(before, after)) is None else norm
        )

    def exchange(self, engine: Engine) -> None:
        for p in trained(engine):
            p.data.fill_(math.nan)
