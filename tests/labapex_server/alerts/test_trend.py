"""What a run's losses say of it: however they are cut into frames, and in whatever unit the loss is."""

from __future__ import annotations

import itertools
import math
import random

import hypothesis.strategies as st
from hypothesis import given, settings

from labapex_server.alerts.trend import BLOCK, BLOCKS, STALL_SECONDS, Trend

FINITE = st.floats(-1e6, 1e6)
ANY = st.floats()


def folded(losses: list[float], step: float = 1.0) -> Trend:
    return Trend().fold(losses, [1000.0 + step * n for n in range(len(losses))])


@given(losses=st.lists(ANY, max_size=300), cuts=st.lists(st.integers(0, 300), max_size=20))
def test_how_losses_are_cut_into_frames_says_nothing(losses: list[float], cuts: list[int]) -> None:
    trend = Trend()
    edges = sorted({0, *(min(cut, len(losses)) for cut in cuts), len(losses)})
    for begin, end in itertools.pairwise(edges):
        trend = trend.fold(losses[begin:end], [1000.0 + n for n in range(begin, end)])
    assert trend == folded(losses)
    assert trend.seen == len(losses)
    assert trend.bad == sum(not math.isfinite(loss) for loss in losses)


@given(losses=st.lists(FINITE, max_size=400).map(lambda found: sorted(found, reverse=True)))
def test_a_loss_that_never_rises_never_diverges(losses: list[float]) -> None:
    assert not folded(losses).diverging


@given(losses=st.lists(st.floats(-100, 100), min_size=6 * BLOCK, max_size=12 * BLOCK), power=st.integers(-20, 20))
def test_a_loss_in_other_units_gives_the_same_alarm(losses: list[float], power: int) -> None:
    assert folded([loss * 2.0**power for loss in losses]).diverging == folded(losses).diverging


@given(height=st.floats(10, 1e300), seed=st.integers(0, 1000))
def test_a_run_that_explodes_diverges_and_one_that_comes_back_has_recovered(height: float, seed: int) -> None:
    draw = random.Random(seed)
    fine = [2.3 * 0.99**n + abs(draw.gauss(0, 0.02)) for n in range(10 * BLOCK)]
    gone = folded(fine + [height] * (BLOCKS * BLOCK))
    assert gone.diverging
    assert not folded(fine + [height] * ((BLOCKS - 1) * BLOCK)).diverging
    assert not gone.fold(fine[-BLOCKS * BLOCK :], [2000.0 + n for n in range(BLOCKS * BLOCK)]).diverging


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.001, 1), spikes=st.floats(0, 0.3))
def test_noise_and_spikes_alone_raise_no_alarm(seed: int, noise: float, spikes: float) -> None:
    draw = random.Random(seed)
    losses = [
        0.3 + 2 * 0.995**n + draw.gauss(0, noise) + (50 if draw.random() < spikes else 0) for n in range(40 * BLOCK)
    ]
    assert not folded(losses).diverging


def test_a_loss_that_is_no_number_is_told_until_a_block_without_one() -> None:
    trend = folded([1.0] * 10 + [math.nan])
    assert (trend.not_finite, trend.last_bad, trend.bad) == (True, 10, 1)
    assert not trend.fold([1.0] * (BLOCK + 1), [2000.0 + n for n in range(BLOCK + 1)]).not_finite


def test_patience_follows_the_runs_own_pace_and_its_longest_pause() -> None:
    assert Trend().patience(None) == STALL_SECONDS
    assert Trend().patience(30.0) == 600
    assert folded([1.0] * 100, step=20.0).patience(0.1) == 400
    paused = folded([1.0] * 100, step=1.0).fold([1.0] * 50, [1400.0 + n for n in range(50)])
    assert paused.patience(0.1) == 3 * 301
