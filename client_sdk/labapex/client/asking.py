"""One platform, asked and answered in messages of the protocol."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import httpx

from labapex.client import credentials
from labapex.client.connection import MAX_REPLY, Connection, Request
from labapex.protocol.api import JobPage, OfferPage, Statement, TokenPage
from labapex.protocol.canonical import Message, parse
from labapex.protocol.ruling import DisputePage

_M = TypeVar("_M", bound=Message)
_P = TypeVar("_P", DisputePage, JobPage, OfferPage, Statement, TokenPage)


class Asking:
    """A connection to a platform with somebody's token, or with none. Raises the errors of `labapex.errors`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], float] = time.time,
    ) -> None:
        address, found = credentials.resolve(url, token, os.environ)
        self._connection = Connection(address, found, transport=transport, sleep=sleep, jitter=jitter, now=now)

    @property
    def url(self) -> str:
        return self._connection.url

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self,
        model: type[_M],
        method: str,
        path: str,
        *,
        body: Message | None = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        repeatable: bool = True,
        anonymous: bool = False,
    ) -> _M:
        content = body.model_dump_json().encode() if body else b"{}" if method == "POST" else None
        asked = Request(
            method,
            f"/api/v1/{path}",
            content=(lambda: content) if content is not None else None,
            headers={**({"Content-Type": "application/json"} if content is not None else {}), **(headers or {})},
            params=params,
            anonymous=anonymous,
        )
        reply = self._connection.call(asked, repeatable=repeatable)
        return parse(model, reply.body, limit=MAX_REPLY)

    def _pages(self, model: type[_P], path: str) -> Iterator[Any]:
        return all_pages(lambda cursor: self._ask(model, "GET", path, params={"cursor": cursor}))


def all_pages(ask: Callable[[str], _P]) -> Iterator[Any]:
    """The rows of all pages."""
    cursor: str | None = ""
    while cursor is not None:
        page = ask(cursor)
        yield from page.results
        cursor = page.next if page.next != cursor else None


def one_time() -> dict[str, str]:
    """The key by which a request that was repeated, because its answer got lost, makes its thing only once."""
    return {"Idempotency-Key": str(uuid.uuid4())}
