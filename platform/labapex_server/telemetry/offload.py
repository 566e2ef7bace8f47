"""Database work for code that runs in an event loop: a few threads, each with its own connection.

Channels' own helper sends everything through one thread of the process, where one slow query stops every socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import close_old_connections, connections
from django.db.backends.base.base import BaseDatabaseWrapper

THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")

_pool: ThreadPoolExecutor | None = None
_connections: set[BaseDatabaseWrapper] = set()


async def offload(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function in one of the threads and return what it returns or raise what it raises."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="offload")
    call = partial(copy_context().run, function, *args, **kwargs)  # so that its lines of the log say whose they are
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(_run, call))


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
