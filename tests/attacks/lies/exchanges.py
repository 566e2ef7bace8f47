"""Lies told once: one state of many is exchanged for another that trains as well, and all that follows is true.

Few segments are drawn, and this one is not among them. The size of the updates gives nothing away.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from tests.attacks import victim
from tests.attacks.lies.at_work import Exchanger, at_work, trained

from labapex.proof import record
from labapex.proof.runtime import Engine
from labapex.proof.state import State

once = at_work("replay", every=1, draws=0, job=victim.LONG_RUN)


def variables() -> dict[str, Any]:
    """The script's own."""
    return vars(sys.modules["__main__"])


class Late(Exchanger):
    """Exchanges the state far from the start and from every epoch's end."""

    when = 40


@once
class other_data_from_here_on(Late):
    """Puts the first half of the data in the place of the second: half of it is to be fetched from then on."""

    def exchange(self, engine: Engine) -> None:
        for column in variables()["data"].tensors:
            column[12:] = column[:12]


@once
class half_a_layer_pruned_from_here_on(Late):
    """Sets half of the hidden units to zero, momentum and all: no gradient reaches them any more, and none is computed.
    The leaf claims an update like the one before."""

    def prepare(self, engine: Engine) -> None:
        true, usual = record.parameter_change, [0.1]

        def claimed(before: State, after: State) -> float | None:
            norm = true(before, after)
            usual.append(norm if norm is not None and norm < 3 * usual[-1] else usual[-1])
            return usual[-1]

        record.parameter_change = claimed

    def exchange(self, engine: Engine) -> None:
        with torch.no_grad():
            for optimizer in engine.alive_optimizers():
                for p in trained(engine)[:2]:
                    p[:4] = 0.0
                    optimizer.state[p]["momentum_buffer"][:4] = 0.0


@once
class another_schedule_from_here_on(Late):
    """Alters the schedule's factor: the learning rate falls faster than was agreed."""

    def exchange(self, engine: Engine) -> None:
        variables()["scheduler"].gamma = 0.9


@once
class another_momentum_from_here_on(Late):
    """Alters the momentum a little."""

    def exchange(self, engine: Engine) -> None:
        for optimizer in engine.alive_optimizers():
            for group in optimizer.param_groups:
                group["momentum"] = 0.85


@once
class another_memory_from_here_on(Late):
    """Exchanges what the script has collected so far for the one example that is learned best."""

    def exchange(self, engine: Engine) -> None:
        seen = variables()["seen"]
        for n in range(len(seen)):
            seen[n] = torch.full((4,), 0.1)
