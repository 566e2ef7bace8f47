"""What an epoch costs. Integers of micro-credits, rounded up, so that no work is free."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple, TypedDict

from labapex_server.jobs.models import Job

_HOUR = 3600


class Work(TypedDict):
    """What both functions ask of a job, and of the worker whose price it is."""

    price_per_hour: int
    iteration_seconds: float
    iterations_per_epoch: int
    epochs: int


def work_of(job: Job, price_per_hour: int) -> Work:
    """A job that passed its preflight, at a worker's price in micro-credits."""
    assert job.facts is not None
    return {
        "price_per_hour": price_per_hour,
        "iteration_seconds": job.iteration_seconds or 0.0,
        "iterations_per_epoch": job.facts["iterations_per_epoch"],
        "epochs": job.job_spec.epochs,
    }


class Price(NamedTuple):
    """Of an epoch, in micro-credits: what its host is paid, and what the platform has besides."""

    host: int
    fee: int


def price_per_epoch(
    *,
    price_per_hour: int,
    iteration_seconds: float,
    iterations_per_epoch: int,
    budget: int,
    epochs: int,
    fee_basis_points: int = 0,
) -> Price:
    """The host's is at least 1, and both together are never so much that `epochs` of them exceed the budget; `iteration_seconds`
    is the preflight's."""
    exact = Fraction(price_per_hour) * Fraction(iteration_seconds) * iterations_per_epoch / _HOUR
    most = budget // epochs
    host = min(max(1, _up(exact)), most)
    fee = min(fee_of(host, fee_basis_points), most - 1) if most else 0
    return Price(min(host, most - fee), fee)


def estimate(
    *,
    price_per_hour: int,
    iteration_seconds: float,
    iterations_per_epoch: int,
    epochs: int,
    fee_basis_points: int = 0,
) -> int:
    """What all epochs would cost at this price, the fee among it, whatever the budget."""
    exact = Fraction(price_per_hour) * Fraction(iteration_seconds) * iterations_per_epoch * epochs / _HOUR
    host = max(epochs, _up(exact))
    return host + fee_of(host, fee_basis_points)


def fee_of(amount: int, basis_points: int) -> int:
    """The platform's part besides an amount, rounded up."""
    return _up(Fraction(amount * basis_points, 10_000))


def _up(exact: Fraction) -> int:
    return -(-exact.numerator // exact.denominator)
