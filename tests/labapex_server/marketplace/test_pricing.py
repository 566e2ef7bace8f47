from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labapex_server.marketplace.pricing import estimate, price_per_epoch

money = st.integers(min_value=1, max_value=10**15)
seconds = st.floats(min_value=0, max_value=10**5)
counts = st.integers(min_value=1, max_value=10**6)


@given(hourly=money, iteration=seconds, per_epoch=counts, epochs=counts, spare=money, share=st.integers(0, 5000))
def test_a_price_is_never_zero_and_all_epochs_fit_the_budget(
    hourly: int, iteration: float, per_epoch: int, epochs: int, spare: int, share: int
) -> None:
    budget = epochs + spare
    price = price_per_epoch(
        price_per_hour=hourly,
        iteration_seconds=iteration,
        iterations_per_epoch=per_epoch,
        budget=budget,
        epochs=epochs,
        fee_basis_points=share,
    )
    assert price.host >= 1
    assert price.fee >= 0
    assert (price.host + price.fee) * epochs <= budget


def test_an_hour_costs_what_an_hour_costs() -> None:
    fields = {"price_per_hour": 3_600_000, "iteration_seconds": 0.5, "iterations_per_epoch": 10}
    assert price_per_epoch(**fields, budget=10**9, epochs=3) == (5000, 0)
    assert price_per_epoch(**fields, budget=10**9, epochs=3, fee_basis_points=250) == (5000, 125)
    assert estimate(**fields, epochs=3, fee_basis_points=250) == 15_375
    assert estimate(**fields, epochs=3) == 15_000


def test_a_fraction_is_rounded_up() -> None:
    assert estimate(price_per_hour=1, iteration_seconds=0.001, iterations_per_epoch=1, epochs=1) == 1
    assert estimate(price_per_hour=3601, iteration_seconds=1, iterations_per_epoch=1, epochs=1) == 2
