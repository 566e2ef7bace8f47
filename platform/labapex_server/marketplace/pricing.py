"""What an epoch costs. Integers of micro-credits, rounded up, so that no work is free."""

from __future__ import annotations

from fractions import Fraction
from typing import TypedDict

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


def price_per_epoch(
    *, price_per_hour: int, iteration_seconds: float, iterations_per_epoch: int, budget: int, epochs: int
) -> int:
    """At least 1, and never so much that `epochs` of them exceed the budget; `iteration_seconds` is the preflight's."""
    exact = Fraction(price_per_hour) * Fraction(iteration_seconds) * iterations_per_epoch / _HOUR
    return min(max(1, -(-exact.numerator // exact.denominator)), budget // epochs)


def estimate(*, price_per_hour: int, iteration_seconds: float, iterations_per_epoch: int, epochs: int) -> int:
    """What all epochs would cost at this price, whatever the budget."""
    exact = Fraction(price_per_hour) * Fraction(iteration_seconds) * iterations_per_epoch * epochs / _HOUR
    return max(epochs, -(-exact.numerator // exact.denominator))
