"""Speed trials: honest answers are measured on the platform's clock, and every way around the work is found."""

from __future__ import annotations

import hashlib
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex_worker import speed

from labapex.errors import MalformedInput
from labapex.protocol.frames import TrialAnswer, TrialBegin, TrialPart, TrialReady, TrialShow
from labapex.trial import BOUND, LARGEST, MODULUS, operations
from labapex_server.gateway import trial as door
from labapex_server.gateway.trial import REPETITIONS, Failed, Trial
from labapex_server.workers.speed import GPU_PLAN, Plan, Shown, check

SMALL = Plan(64, 5)


def chain(trial: UUID, seed: bytes, *, products: int | None = None) -> bytes:
    return speed.chain(trial, seed, SMALL.size, SMALL.rounds, products=products)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """A worker that answers after `seconds` each; `work` is what it computes instead of the chain."""

    def __init__(self, trial: Trial, clock: Clock, *, seconds: float = 2.0) -> None:
        self.trial, self.clock, self.seconds = trial, clock, seconds
        self.results: list[bytes] = []
        self.trial.begin()

    def work(self, seed: bytes) -> bytes:
        return chain(self.trial.id, seed)

    def shown(self, number: int) -> bytes:
        return self.results[number]

    def run(self) -> Shown:
        said = self.trial.on_ready(TrialReady(trial=self.trial.id))
        while isinstance(said, TrialBegin):
            self.results.append(self.work(said.seed))
            self.clock.now += self.seconds
            digest = hashlib.sha256(self.results[-1]).digest()
            said = self.trial.on_answer(TrialAnswer(trial=self.trial.id, digest=digest))
        assert isinstance(said, TrialShow)
        result = self.shown(said.number)
        for offset in range(0, len(result), 1000):
            part = TrialPart(trial=self.trial.id, offset=offset, data=result[offset : offset + 1000])
            if (shown := self.trial.on_part(part)) is not None:
                return shown
        raise AssertionError("the result was too short")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trial(clock: Clock) -> Trial:
    return Trial(SMALL, clock)


def test_an_honest_host_is_measured_on_the_platforms_clock(trial: Trial, clock: Clock) -> None:
    shown = Host(trial, clock, seconds=2.5).run()
    assert (shown.seconds, shown.attempts) == (2.5, (2.5,) * REPETITIONS)
    assert check(shown) is None


def test_the_clock_begins_when_the_seed_is_given_out_and_not_before(trial: Trial, clock: Clock) -> None:
    trial.begin()
    clock.now += 200  # loading torch costs nothing
    trial.on_ready(TrialReady(trial=trial.id))
    clock.now += 3
    trial.on_answer(TrialAnswer(trial=trial.id, digest=bytes(32)))
    assert trial.seconds == [3.0]


def test_a_slow_answer_is_no_answer(trial: Trial, clock: Clock) -> None:
    with pytest.raises(Failed, match="61 s; 60 s are allowed"):
        Host(trial, clock, seconds=61.0).run()


def test_a_worker_that_goes_silent_is_not_waited_for(trial: Trial, clock: Clock) -> None:
    trial.begin()
    trial.on_ready(TrialReady(trial=trial.id))
    assert not trial.expired()
    clock.now += door.ANSWER_SECONDS + 1
    assert trial.expired()


def test_a_digest_of_something_else_is_found_whichever_is_drawn(clock: Clock) -> None:
    for chosen in range(REPETITIONS):
        trial = Trial(SMALL, clock, draw=lambda _, number=chosen: number)

        class Guesser(Host):
            def work(self, seed: bytes) -> bytes:
                return bytes(SMALL.size**2)

            def shown(self, number: int) -> bytes:
                return chain(self.trial.id, self.trial.seeds[number])  # computed afterwards, with all the time there is

        with pytest.raises(Failed, match="not the one whose digest was sent in time"):
            Guesser(trial, clock).run()


@pytest.mark.parametrize("products", [0, 1, 4])
def test_a_chain_that_was_cut_short_is_found(trial: Trial, clock: Clock, products: int) -> None:
    class Lazy(Host):
        def work(self, seed: bytes) -> bytes:
            return chain(self.trial.id, seed, products=products)

    assert check(Lazy(trial, clock).run()) == "the result is not that of the chain that was asked for"


def test_a_result_that_is_made_up_is_found(trial: Trial, clock: Clock) -> None:
    class Inventor(Host):
        def work(self, seed: bytes) -> bytes:
            return bytes(number % MODULUS for number in seed * (SMALL.size**2 // 32))

    assert check(Inventor(trial, clock).run()) is not None


def test_an_answer_of_another_trial_is_worth_nothing_in_this_one(trial: Trial, clock: Clock) -> None:
    """Neither a recorded answer nor one to a seed that was known before: the trial's id goes into the entries."""
    other = uuid4()

    class Replayer(Host):
        def work(self, seed: bytes) -> bytes:
            return chain(other, seed)

    assert check(Replayer(trial, clock).run()) is not None


def test_seeds_are_fresh_and_come_one_after_the_other(trial: Trial, clock: Clock) -> None:
    Host(trial, clock).run()
    assert len(set(trial.seeds)) == REPETITIONS
    again = Trial(SMALL, clock)
    Host(again, clock).run()
    assert not set(again.seeds) & set(trial.seeds)


def test_no_answer_is_taken_before_its_seed_was_given_out_nor_twice(trial: Trial) -> None:
    trial.begin()
    answer = TrialAnswer(trial=trial.id, digest=bytes(32))
    with pytest.raises(MalformedInput):
        trial.on_answer(answer)
    trial.on_ready(TrialReady(trial=trial.id))
    with pytest.raises(MalformedInput):
        trial.on_ready(TrialReady(trial=trial.id))
    with pytest.raises(MalformedInput):
        trial.on_answer(answer.model_copy(update={"trial": uuid4()}))


def test_parts_are_taken_in_order_and_no_more_of_them_than_there_can_be(trial: Trial, clock: Clock) -> None:
    trial.begin()
    trial.on_ready(TrialReady(trial=trial.id))
    with pytest.raises(MalformedInput):
        trial.on_part(TrialPart(trial=trial.id, offset=0, data=b"x"))
    for _ in range(REPETITIONS):
        trial.on_answer(TrialAnswer(trial=trial.id, digest=bytes(32)))
    with pytest.raises(MalformedInput):
        trial.on_part(TrialPart(trial=trial.id, offset=5, data=b"x"))
    with pytest.raises(Failed, match="longer"):
        trial.on_part(TrialPart(trial=trial.id, offset=0, data=bytes(SMALL.size**2 + 1)))


def test_a_worker_that_cannot_says_why(trial: Trial) -> None:
    trial.begin()
    with pytest.raises(Failed, match="no torch"):
        trial.on_ready(TrialReady(trial=trial.id, problem="no torch"))


@given(st.integers(0, SMALL.size**2 - 1), st.integers(1, 255))
def test_one_wrong_entry_anywhere_is_found(place: int, change: int) -> None:
    trial, seed = UUID(int=7), bytes(32)
    result = bytearray(chain(trial, seed))
    result[place] = (result[place] + change) % 256
    found = check(Shown(SMALL, trial, seed, bytes(result), 1.0, (1.0,)))
    assert (found is None) == (change % 256 == 0)


def test_no_sum_of_the_largest_size_leaves_what_float32_holds_exactly() -> None:
    assert LARGEST * BOUND * BOUND < 2**24


def test_what_a_gpu_is_asked_needs_more_within_the_limit_than_all_but_the_largest_cpus_have() -> None:
    assert operations(GPU_PLAN.size, GPU_PLAN.rounds) / door.ANSWER_SECONDS / 1e9 > 4_000  # GFLOP/s in float32
