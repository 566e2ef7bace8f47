"""Database work for code that runs in an event loop: a few threads, each with its own connection.

Channels' own helper sends everything through one thread of the process, where one slow query stops every socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from django.db import close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper

THREADS = 4
GATHER_SECONDS = 0.02

P = ParamSpec("P")
T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")

_pool: ThreadPoolExecutor | None = None
_connections: set[BaseDatabaseWrapper] = set()


async def offload(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function in one of the threads and return what it returns or raise what it raises."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="offload")
    call = partial(copy_context().run, function, *args, **kwargs)  # so that its lines of the log say whose they are
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(_run, call))


class Gathered(Generic[Q, A]):
    """A question that many connections have again and again, put to the database for all of them that have it at about the same
    time. `answer` gets their questions in a thread and returns their answers in the same order."""

    def __init__(self, answer: Callable[[list[Q]], list[A]]) -> None:
        self._answer = answer
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Q, asyncio.Future[A]]]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Q) -> A:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        if loop not in self._waiting:
            self._waiting[loop] = []
            loop.call_later(GATHER_SECONDS, self._begin, loop)
        self._waiting[loop].append((question, future))
        return await future

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        task = loop.create_task(self._ask(self._waiting.pop(loop)))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, asked: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await offload(self._answer, [question for question, _ in asked])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised where the question was asked
            if len(asked) > 1:  # and only of the one whose question it was
                for each in asked:
                    await self._ask([each])
            elif not asked[0][1].done():
                asked[0][1].set_exception(error)
            return
        for (_, future), answer in zip(asked, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def shutdown() -> None:
    """Finish what runs and end the threads with their connections. The next `offload` starts new ones."""
    global _pool
    pool, _pool = _pool, None
    if pool is not None:
        pool.shutdown()
    while _connections:
        left = _connections.pop()
        left.inc_thread_sharing()  # its own thread is gone
        left.close()


def _run(call: Callable[[], T]) -> T:
    close_old_connections()
    try:
        return call()
    finally:
        close_old_connections()
        _connections.add(connections["default"])
