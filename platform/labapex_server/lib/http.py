"""The few lines of HTTP that stand before Django: Django reads a whole body to disk before any of its code runs.

So limits, and uploads that are streamed, are raw ASGI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from labapex_server.lib import problems
from labapex_server.lib.errors import Slow

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAIN_BYTES = 8 << 20
_DRAIN_SECONDS = 2.0


def headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def content_length(fields: dict[str, str]) -> int | None:
    """The announced length; None where there is none or it is no number."""
    text = fields.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


async def respond(
    send: Send,
    status: int,
    body: bytes = b"",
    *,
    kind: str = "application/json",
    extra: Mapping[str, str] | None = None,
) -> None:
    """`extra` are further header fields."""
    fields = [
        (b"content-type", kind.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *((name.lower().encode(), value.encode()) for name, value in (extra or {}).items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def problem(
    send: Send,
    status: int,
    code: str,
    detail: str,
    *,
    instance: str | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """An error as RFC 9457 has it."""
    body = problems.document(status, code, detail, instance=instance).model_dump_json().encode()
    await respond(send, status, body, kind="application/problem+json", extra=extra)


class Left(Exception):
    """The client went away."""


async def body(receive: Receive, *, idle: float, advice: str) -> AsyncIterator[bytes]:
    """A request's body as it comes. Raises `Left`, and `Slow` with some advice when nothing came for `idle` seconds."""
    more = True
    while more:
        try:
            async with asyncio.timeout(idle):
                event = await receive()
        except TimeoutError:
            raise Slow(f"nothing came for {idle:.0f} seconds; {advice}") from None
        if event["type"] == "http.disconnect":
            raise Left
        more = event.get("more_body", False)
        yield event.get("body", b"")


async def drain(receive: Receive) -> None:
    """Take a little of a refused body, so that a client that is still sending gets to read why."""
    left = _DRAIN_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while left > 0:
                event = await receive()
                if event["type"] == "http.disconnect" or not event.get("more_body", False):
                    return
                left -= len(event.get("body", b""))


class BodyLimit:
    """Refuses bodies over a limit before the application sees a byte of them. `limit` gives the bytes for a request."""

    def __init__(self, application: Application, limit: Callable[[Scope], Awaitable[int]]) -> None:
        self._application, self._limit = application, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._application(scope, receive, send)
            return
        fields, limit = headers(scope), await self._limit(scope)
        length = content_length(fields)
        if "transfer-encoding" in fields and length is None:
            await problem(send, 411, "length-required", "send Content-Length, and no chunked encoding")
        elif (length or 0) > limit:
            await problem(send, 413, "too-large", f"the request has {length} bytes; at most {limit} are accepted here")
            await drain(receive)
        else:
            await self._application(scope, receive, send)  # the server holds the body to its Content-Length
