"""Which of a run's initial values follow from its seed, tensor by tensor, and which a certified file explains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.stats import ks_2samp
from torch import Tensor

from labapex.proof.starts import compare, ks_gap
from labapex.proof.state import State
from labapex.protocol.contract import Parent
from labapex.protocol.replay import StartReport


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STOLEN = drawn(99, 8, 8)


def a_start(seed: int, **tensors: Tensor) -> State:
    """Random weights, a bias of zeros, and what is given."""
    made = {"weight": drawn(seed, 8, 8), "bias": torch.zeros(8), **tensors}
    return State({}, made, sorted(made))


def compared(work: Path, *parents: Parent, committed: State | None = None, **given: Tensor) -> StartReport:
    return compare(a_start(1, **given), a_start(2, **given), committed=committed, parents=parents, work=work)


def certified(work: Path, tensors: dict[str, Tensor]) -> Parent:
    (work / "parents").mkdir()
    save_file(tensors, work / "parents" / "0.safetensors")
    digest = hashlib.sha256((work / "parents" / "0.safetensors").read_bytes()).hexdigest()
    return Parent(path="parents/0.safetensors", weights=digest, certificate="c" * 64, success=1.0)


def test_random_and_constant_tensors_follow_from_the_seed(tmp_path: Path) -> None:
    found = compared(tmp_path, scale=torch.ones(8))
    assert (found.tensors, found.given, found.unproven, found.tested) == (3, 0, 0, 1)


@pytest.mark.parametrize("given", [STOLEN, torch.eye(6), torch.tensor([0.0, 1.0])])
def test_a_tensor_that_is_the_same_under_another_seed_is_unproven(tmp_path: Path, given: Tensor) -> None:
    found = compared(tmp_path, head=given)
    assert (found.given, found.unproven, found.names) == (1, 1, ("head",))


def test_a_tensor_that_a_certified_file_holds_is_proven_under_any_name(tmp_path: Path) -> None:
    found = compared(tmp_path, certified(tmp_path, {"old.name": STOLEN}), head=STOLEN)
    assert (found.given, found.unproven) == (1, 0)


def test_one_bit_beside_the_certified_value_is_not_proven(tmp_path: Path) -> None:
    other = STOLEN.clone()
    other.view(torch.int32)[0, 0] ^= 1
    assert compared(tmp_path, certified(tmp_path, {"head": STOLEN}), head=other).unproven == 1


def test_a_file_that_is_not_the_certified_one_proves_nothing(tmp_path: Path) -> None:
    parent = certified(tmp_path, {"head": drawn(5, 8, 8)})
    save_file({"head": STOLEN}, tmp_path / parent.path)  # as a script might that writes over its parent
    assert compared(tmp_path, parent, head=STOLEN).unproven == 1
    (tmp_path / parent.path).unlink()
    assert compared(tmp_path, parent, head=STOLEN).unproven == 1


def test_values_of_another_distribution_are_found_in_the_committed_start(tmp_path: Path) -> None:
    fresh = compared(tmp_path)
    trained = compared(tmp_path, committed=a_start(3, weight=drawn(3, 8, 8) * 4))
    assert fresh.least_p is not None
    assert trained.least_p is not None
    assert trained.least_p < 0.01 < fresh.least_p


def test_a_stolen_model_mapped_by_rank_onto_fresh_draws_passes_the_statistical_test(tmp_path: Path) -> None:
    order = STOLEN.flatten().argsort().argsort()
    mapped = drawn(4, 64).sort().values[order].reshape(8, 8)
    assert (compared(tmp_path, committed=a_start(3, weight=mapped)).least_p or 0) > 0.01


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=40))
def test_the_gap_is_that_of_scipy_ties_and_all(pairs: list[tuple[int, int]]) -> None:
    one, other = (torch.tensor([float(x) for x in side]) for side in zip(*pairs, strict=True))
    theirs = ks_2samp(one.numpy(), other.numpy(), method="asymp").statistic
    assert ks_gap(one, other) == round(theirs * len(pairs))
