"""The owner's page of metrics: figures for Prometheus and for people, on this machine and for this machine alone."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from labapex_worker.limits import Limits
from labapex_worker.metrics import MAX_REQUEST, Page, page, prometheus
from labapex_worker.phases import Phase
from labapex_worker.status import LeaseStatus, Status
from labapex_worker.wishes import Wish

LEASE, JOB = UUID(int=1), UUID(int=2)
STATUS = Status(
    worker=UUID(int=3), name="<b>box", platform="https://x", pid=7, connected_since=1.0, wish=Wish.PAUSE,
    held="its owner paused it", limits=Limits(), spool_bytes=5, spool_limit=10, disk_free=99, disk_limit=3, temperature=61,
    leases=(
        LeaseStatus(
            lease=LEASE, job=JOB, name='a "name"', phase=Phase.RUNNING, process="runs", iterations=30, total=60,
            frames_kept=2, reason="",
        ),
    ),
)  # fmt: skip
SAMPLE = re.compile(r'labapex_worker_[a-z_]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? [0-9.e+]+')


@pytest.fixture
async def served() -> AsyncIterator[tuple[Page, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Page(lambda: STATUS)
    await made.listen(port)
    yield made, port
    await made.close()


async def said(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionResetError:  # it was closed with something unread
        return b""
    finally:
        writer.close()


def get(path: str, host: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def test_every_line_is_of_the_text_format_and_tells_a_figure_once() -> None:
    lines = prometheus(STATUS).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples)
    assert len({line.rsplit(" ", 1)[0] for line in samples}) == len(samples)
    assert "labapex_worker_takes_work 0" in samples
    assert "labapex_worker_temperature_celsius 61" in samples
    assert f'labapex_worker_lease_iterations{{lease="{LEASE}",job="{JOB}"}} 30' in samples
    assert not any("power" in line for line in lines), "what is not known is left out"


def test_the_page_for_people_takes_no_name_for_markup() -> None:
    text = page(STATUS)
    assert "&lt;b&gt;box" in text
    assert "<b>" not in text
    assert "its owner paused it" in text


async def test_both_are_served_to_this_machine(served: tuple[Page, int]) -> None:
    _, port = served
    assert b"labapex_worker_connected 1" in await said(port, get("/metrics", f"127.0.0.1:{port}"))
    assert b"<h1>" in await said(port, get("/", f"localhost:{port}"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost:1", "", "[::]"])
async def test_a_page_that_reached_it_by_another_name_is_refused(served: tuple[Page, int], host: str) -> None:
    answer = await said(served[1], get("/metrics", host))
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert b"labapex_worker_" not in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"\xff\r\n\r\n", 400),
        (get("/", "localhost", method="POST"), 405),
        (get("/../etc/passwd", "localhost"), 404),
    ],
    ids=["no-host", "two-hosts", "noise", "post", "elsewhere"],
)
async def test_what_it_does_not_serve_it_refuses(served: tuple[Page, int], request_: bytes, status: int) -> None:
    assert (await said(served[1], request_)).startswith(f"HTTP/1.1 {status} ".encode())


async def test_a_request_without_end_is_cut_off(served: tuple[Page, int]) -> None:
    assert await said(served[1], b"G" * (2 * MAX_REQUEST)) == b""


async def test_it_listens_on_loopback_alone_and_no_more_once_it_is_off(served: tuple[Page, int]) -> None:
    made, port = served
    assert made._server is not None
    assert [each.getsockname()[0] for each in made._server.sockets] == ["127.0.0.1"]
    await made.listen(None)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_that_is_taken_is_not_the_workers_end(
    served: tuple[Page, int], caplog: pytest.LogCaptureFixture
) -> None:
    second = Page(lambda: STATUS)
    await second.listen(served[1])
    assert "no page of metrics" in caplog.text
    await second.close()
