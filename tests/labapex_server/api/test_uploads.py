"""Uploads through the whole ASGI application, as the server calls it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from labapex.protocol.api import Scope
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.asgi import application
from labapex_server.jobs.models import Blob

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def token(threads: None, researcher: User) -> str:
    return accounts.issue_token(researcher, name="test")


async def send(
    method: str,
    path: str,
    chunks: Iterable[bytes] = (),
    *,
    token: str | None = None,
    length: int | None = None,
    leave: bool = False,
    **headers: str,
) -> tuple[int, dict[str, Any], int]:
    """(status, document, chunks read). `leave`: the client goes away after its last chunk."""
    body = list(chunks)
    fields = {"host": "localhost", **headers}
    if token:
        fields["authorization"] = f"Bearer {token}"
    if length is not None:
        fields["content-length"] = str(length)
    read = 0
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read < len(body):
            read += 1
            return {"type": "http.request", "body": body[read - 1], "more_body": leave or read < len(body)}
        if leave:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()  # a client that waits for the answer
        raise AssertionError

    async def answer(event: dict[str, Any]) -> None:
        answers.append(event)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await application(scope, receive, answer)
    status = answers[0]["status"] if answers else 0
    content = b"".join(event.get("body", b"") for event in answers[1:])
    return status, json.loads(content) if content.startswith(b"{") else {}, read


def pieces(content: bytes = CONTENT, size: int = 100_000) -> list[bytes]:
    return [content[at : at + size] for at in range(0, len(content), size)]


def address(digest: str = DIGEST) -> str:
    return f"/api/v1/blobs/{digest}/"


def stored() -> int:
    return Blob.objects.count()


async def put(token: str, chunks: Iterable[bytes], **options: Any) -> tuple[int, dict[str, Any], int]:
    return await send("PUT", address(), chunks, token=token, **{"length": len(CONTENT), **options})


async def test_a_file_is_stored_once(token: str, home: Path) -> None:
    assert (await put(token, pieces()))[0] == 201
    assert (await put(token, [b""]))[0] == 200
    assert await sync_to_async(stored)() == 1
    assert CONTENT[:1000] not in b"".join(p.read_bytes() for p in (home / "blobs").rglob("*") if p.is_file())


async def test_an_empty_file_is_a_file(token: str) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    assert (await send("PUT", address(empty), [b""], token=token, length=0))[0] == 201


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"token": None}, 401, "not-logged-in"),
        ({"token": "apex_invented"}, 401, "not-logged-in"),
        ({"length": None}, 411, "length-required"),
        ({"length": 3 << 30}, 413, "too-large"),
    ],
)
async def test_what_may_not_be_is_refused_before_anything_is_stored(
    token: str, home: Path, options: dict[str, Any], status: int, code: str
) -> None:
    asked = {"token": token, "length": len(CONTENT), **options}
    got, document, _ = await send("PUT", address(), pieces()[:2], **asked)
    assert (got, document["code"]) == (status, code)
    assert await sync_to_async(stored)() == 0
    assert not (home / "blobs").exists()


@pytest.mark.parametrize("digest", ["0" * 63, "F" * 64, "..%2f", "0" * 65])
async def test_an_address_that_is_no_digest_is_nothing(token: str, digest: str) -> None:
    status, document, _ = await send("PUT", address(digest), pieces(), token=token, length=len(CONTENT))
    assert (status, document["code"]) == (404, "not-found")


async def test_other_bytes_than_announced_are_refused_and_forgotten(token: str, home: Path) -> None:
    status, document, _ = await put(token, pieces(CONTENT[::-1]))
    assert (status, document["code"]) == (422, "digest-mismatch")
    status, document, _ = await put(token, pieces()[:-1])
    assert (status, document["code"]) == (400, "invalid")
    assert not [path for path in (home / "blobs").rglob("*") if path.is_file()]


async def test_a_client_that_goes_away_goes_on_where_it_was(token: str, home: Path) -> None:
    assert (await put(token, pieces()[:25], leave=True))[0] == 0
    assert await sync_to_async(stored)() == 0
    status, document, _ = await put(token, pieces()[10:], length=len(CONTENT) - 1_000_000, **rest(1_000_000))
    assert (status, document["code"]) == (409, "offset-mismatch")
    assert document["instance"] == address()
    offset = 1 << 20  # of the 2.5 MB that came; what is sealed lags one segment behind
    assert (await put(token, pieces(CONTENT[offset:]), length=len(CONTENT) - offset, **rest(offset)))[0] == 201
    assert await sync_to_async(stored)() == 1


def rest(offset: int) -> dict[str, str]:
    return {"content-range": f"bytes {offset}-{len(CONTENT) - 1}/{len(CONTENT)}"}


@pytest.mark.parametrize(
    "text", ["bytes 0-1/2", "bytes 5-4/3", "bytes */3", "items 0-1/2", "bytes 1048576-3145726/3145728", "x" * 5000]
)
async def test_a_range_that_does_not_fit_the_body_is_refused(token: str, text: str) -> None:
    status, document, _ = await put(token, pieces(), **{"content-range": text})
    assert (status, document["code"]) == (400, "invalid")


async def test_a_token_without_the_scope_uploads_nothing(researcher: User, threads: None) -> None:
    weak = await sync_to_async(accounts.issue_token)(researcher, name="reader", scopes=[Scope.JOBS_READ])
    status, document, _ = await put(weak, pieces())
    assert (status, document["code"]) == (403, "missing-scope")
    assert await sync_to_async(stored)() == 0


async def test_the_same_file_twice_at_once_is_stored_once(token: str) -> None:
    statuses = await asyncio.gather(*(put(token, pieces()) for _ in range(3)))
    assert sorted(status for status, _, _ in statuses)[-1] == 201
    assert await sync_to_async(stored)() == 1


async def test_a_body_that_is_too_large_never_reaches_django(token: str) -> None:
    for path in ("/api/v1/jobs/", "/login/", "/jobs/new/", "/gateway/enrol/"):
        status, document, _ = await send("POST", path, pieces()[:1], token=token, length=9 << 20)
        assert (status, document["code"]) == (413, "too-large"), path
    status, document, _ = await send("POST", "/login/", pieces()[:1], **{"transfer-encoding": "chunked"})
    assert (status, document["code"]) == (411, "length-required")


async def test_the_pulse_answers(token: str) -> None:
    assert (await send("GET", "/healthz", [b""]))[0] == 200
