"""Where initial weights come from: the rules about it, the exact test behind one of them, and what a chain is worth."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from tests.labapex.proof.honest import CONTRACT, HONEST, told

from labapex.proof.origins import caught, initialisation_ks, ks_p_value, origin, provenance
from labapex.protocol.contract import Parent
from labapex.protocol.replay import StartReport

FRESH = StartReport(tensors=4, given=0, unproven=0, tested=2, least_p=0.2, least_name="model.weight")


def start(**changes: object) -> object:
    return told(HONEST, start=FRESH.model_copy(update=changes))


def parent(success: float, number: int = 0) -> Parent:
    return Parent(path=f"parents/{number}.safetensors", weights="1" * 64, certificate="2" * 64, success=success)


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=60))
def test_the_p_value_is_the_one_that_scipy_computes_exactly(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    n = len(pairs)
    ours = ks_p_value(round(ks_2samp(one, other, method="asymp").statistic * n), n)
    assume(ours < 0.999)  # nearer to 1 theirs rounds to more than 1, and gives up
    assert ours == pytest.approx(ks_2samp(one, other, method="exact").pvalue, abs=1e-9)


@pytest.mark.parametrize("n", range(1, 6))
def test_the_p_value_is_the_share_of_all_orders_in_which_two_samples_can_come(n: int) -> None:
    gaps = []
    for ours in itertools.combinations(range(2 * n), n):
        walk = itertools.accumulate(1 if place in ours else -1 for place in range(2 * n))
        gaps.append(max(map(abs, walk)))
    for gap in range(n + 2):
        assert ks_p_value(gap, n) == pytest.approx(sum(g >= gap for g in gaps) / len(gaps))


@given(st.integers(10_000, 1 << 20), st.floats(0.2, 3.0))
def test_of_large_samples_it_is_the_limiting_distribution(n: int, scaled: float) -> None:
    gap = max(1, round(scaled * math.sqrt(2 * n)))
    at = gap / math.sqrt(2 * n)
    limit = 2 * sum((-1) ** (j + 1) * math.exp(-2 * (j * at) ** 2) for j in range(1, 200))
    assert ks_p_value(gap, n) == pytest.approx(limit, abs=0.01)


def test_a_start_that_the_seed_explains_passes_both_rules() -> None:
    assert provenance(start())[:3] == (0.0, 0.0, "pass")
    assert initialisation_ks(start())[:3] == (0.2, 0.005, "pass")


def test_tensors_that_nobody_vouches_for_are_counted_and_named() -> None:
    value, limit, result, said = provenance(start(given=3, unproven=2, names=("a.weight", "b.weight")))
    assert (value, limit, result) == (2.0, 0.0, "fail")
    assert said == (
        "2 of 4 parameter tensors neither follow from the seed nor come from a certified model: a.weight, b.weight"
    )


def test_a_start_from_a_certified_model_passes_and_says_so() -> None:
    assert provenance(start(given=3))[2:] == ("pass", "3 of 4 parameter tensors are those of certified models")


def test_the_published_test_is_divided_by_the_number_of_tensors() -> None:
    assert initialisation_ks(start(least_p=0.006))[2] == "pass"
    assert initialisation_ks(start(least_p=0.004))[2] == "fail"


def test_where_no_start_was_compared_neither_rule_says_anything() -> None:
    for rule in (provenance, initialisation_ks):
        assert rule(HONEST)[2] == "not-applicable"
    assert initialisation_ks(start(tested=0, least_p=None))[2] == "not-applicable"


def test_success_rates_multiply_along_the_chain() -> None:
    alone = origin(CONTRACT, FRESH, drawn=44, segments=1000)
    assert alone.success == pytest.approx(1 - 0.9**44)
    after = origin(
        CONTRACT.model_copy(update={"parents": (parent(alone.success), parent(0.5, 1))}), FRESH, drawn=5, segments=5
    )
    assert after.success == pytest.approx(alone.success * 0.5)
    assert after.formula == "1 (all 5 segments) x 0.990302 (of 2222222222222222) x 0.5 (of 2222222222222222)"


@given(st.integers(0, 2000), st.integers(1, 2000), st.lists(st.floats(0, 1), max_size=4))
def test_a_chain_is_never_surer_than_its_weakest_link(drawn: int, segments: int, rates: list[float]) -> None:
    contract = CONTRACT.model_copy(update={"parents": tuple(parent(rate, n) for n, rate in enumerate(rates))})
    found = origin(contract, None, drawn=drawn, segments=segments).success
    assert 0 <= found <= min([caught(drawn, segments), *rates])


def test_what_was_not_recomputed_is_not_said_to_be_proven() -> None:
    assert "were not compared" in origin(CONTRACT, None, drawn=0, segments=3).words
