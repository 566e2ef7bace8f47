"""Questions of many connections, put to the database as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from labapex_server.telemetry.offload import Gathered, shutdown

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    yield
    shutdown()


def test_what_many_ask_at_the_same_time_is_asked_once_and_each_gets_its_answer() -> None:
    asked: list[list[int]] = []

    def double(questions: list[int]) -> list[int]:
        asked.append(questions)
        return [2 * question for question in questions]

    async def play() -> None:
        question = Gathered(double)
        assert await asyncio.gather(*map(question, range(100))) == [2 * number for number in range(100)]
        assert await question(7) == 14

    asyncio.run(play())
    assert asked == [list(range(100)), [7]]


def test_a_question_that_has_no_answer_spoils_none_of_the_others() -> None:
    def invert(questions: list[int]) -> list[float]:
        return [1 / question for question in questions]

    async def play() -> None:
        one, none, four = await asyncio.gather(*map(Gathered(invert), (1, 0, 4)), return_exceptions=True)
        assert (one, four) == (1.0, 0.25)
        assert isinstance(none, ZeroDivisionError)

    asyncio.run(play())


def test_who_does_not_wait_for_its_answer_any_more_is_no_trouble_to_the_others() -> None:
    async def play() -> None:
        question = Gathered(lambda questions: [str(each) for each in questions])
        gone, there = asyncio.create_task(question(1)), asyncio.create_task(question(2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await there == "2"

    asyncio.run(play())
