"""One question to the platform's gateway, and its answer."""

from __future__ import annotations

import ssl
from typing import TypeVar

import httpx

from labapex.cli.output import one_line
from labapex.errors import MalformedInput, PlatformUnreachable, UsageError
from labapex.protocol.canonical import Message, parse

M = TypeVar("M", bound=Message)


def post(url: str, what: str, question: Message, answer: type[M], *, limit: int) -> M:
    """What the platform answers, in at most `limit` bytes. Raises as `request` does."""
    return parse(answer, request("POST", f"{url}/gateway/{what}/", question, limit=limit), limit=limit)


def request(method: str, url: str, question: Message | None = None, *, limit: int) -> bytes:
    """The body of an answer of at most `limit` bytes.

    Raises `PlatformUnreachable`, `UsageError` with what the platform objects to, or `MalformedInput`."""
    try:
        with httpx.stream(
            method,
            url,
            content=None if question is None else question.model_dump_json(),
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
            timeout=30,
            trust_env=False,
            verify=ssl.create_default_context(),  # as the socket: the host's own authorities count
        ) as response:
            body = b""
            for chunk in response.iter_raw(4096):
                body += chunk
                if len(body) > limit:
                    raise MalformedInput(f"the platform's answer has more than {limit} bytes")
    except httpx.TransportError as error:
        raise PlatformUnreachable(f"no answer from {url}: {error or type(error).__name__}") from None
    if not response.is_success:
        said = one_line(body.decode(errors="replace"))[:500]
        path = httpx.URL(url).path
        raise UsageError(f"the platform refused this ({path}, status {response.status_code}): {said}")
    return body
