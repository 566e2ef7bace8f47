"""Between classes rounding is forgiven and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from labapex.proof.apart import state_error
from labapex.proof.state import State


def state(w: float = 1.0, momentum: float = 0.5, steps: int = 3, **structure: Any) -> State:
    tensors = {
        "w": torch.full((4,), w),
        "momentum": torch.full((4,), momentum),
        "steps": torch.tensor(steps),
        "generator": torch.arange(8, dtype=torch.uint8),
    }
    return State({"lr": {"f": (0.1).hex()}, "step": steps, **structure}, tensors, ["w"])


START = state(w=0.0, momentum=0.0, steps=0)


def error(claimed: State, replayed: State, start: State | None = START) -> float | None:
    return state_error(claimed=claimed, replayed=replayed, start=start)


def test_equal_states_are_not_apart() -> None:
    assert error(state(), state()) == 0.0
    assert error(state(w=float("nan")), state(w=float("nan"))) == 0.0


def test_the_error_is_relative_to_what_happened_since_the_start() -> None:
    assert error(state(), state(w=1.01)) == pytest.approx(0.01, rel=1e-4)
    assert error(state(), START.__class__(state().structure, {**state().tensors, "w": torch.zeros(4)}, ["w"])) == 1.0
    assert error(state(), state(w=1.01), start=None) == pytest.approx(0.01, rel=1e-4)


def test_what_is_no_parameter_counts_as_much() -> None:
    """A momentum that was thrown away, a learning rate that was lowered."""
    assert error(state(), state(momentum=0.0)) == pytest.approx(1.0)
    other = state(lr={"f": (0.0).hex()})
    assert (error(other, state()) or 0) > 0.09
    assert (error(state(), state(momentum=0.505)) or 0) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "other",
    [
        state(steps=4),
        state(step=True),
        state(more={"f": "0x1p+0"}),
        State(state().structure, {**state().tensors, "generator": torch.zeros(8, dtype=torch.uint8)}, ["w"]),
        State(state().structure, {**state().tensors, "w": torch.ones(5)}, ["w"]),
        State(state().structure, {**state().tensors, "w": torch.ones(4, dtype=torch.float64)}, ["w"]),
        State(state().structure, {n: t for n, t in state().tensors.items() if n != "momentum"}, ["w"]),
        State(state().structure, state().tensors, ["momentum", "w"]),
        state(w=float("inf")),
    ],
)
def test_what_is_not_of_floating_point_must_be_equal_and_all_else_finite(other: State) -> None:
    assert error(state(), other) is None
    assert error(other, state()) is None


def test_an_update_from_nothing_is_infinitely_far_from_none() -> None:
    assert error(START, state(), start=START) is None
    same = state(w=0.0)
    assert error(same, state(w=1e-3), start=same) is None


def test_what_was_made_since_the_start_has_changed_by_all_that_it_is() -> None:
    older = State({}, {"w": torch.zeros(4)}, ["w"])
    assert error(state(), state(momentum=0.505), start=older) == pytest.approx(0.01, rel=1e-1)


def test_hostile_spellings_of_numbers_are_texts() -> None:
    odd = state(note={"f": "no number"})
    assert error(odd, odd) == 0.0
    assert error(odd, state(note={"f": "another"})) is None
