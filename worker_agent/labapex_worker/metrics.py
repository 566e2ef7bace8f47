"""The owner's own page of metrics: on 127.0.0.1 alone, off unless he wants it, read-only, and without a secret.

`/metrics` is Prometheus' text format, `/` the same for people. A web page somewhere else cannot read it through the owner's
browser: the request has to name this machine as its host, or it is refused (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
from collections.abc import Callable, Iterator
from http import HTTPStatus

from labapex_worker.status import Status

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
MAX_REQUEST = 8192
SECONDS = 10.0
CONNECTIONS = 16
_NAMES = ("127.0.0.1", "localhost")
_TEXT, _PAGE = "text/plain; version=0.0.4; charset=utf-8", "text/html; charset=utf-8"


class Page:
    """Serves what `look` returns at each request."""

    def __init__(self, look: Callable[[], Status]) -> None:
        self._look = look
        self._server: asyncio.Server | None = None
        self._port: int | None = None
        self._open = 0

    async def listen(self, port: int | None) -> None:
        """Serve on this port from now on, or on none. A port that is taken is a line in the log, not the worker's end."""
        if port == self._port:
            return
        await self.close()
        if port is None:
            return
        try:
            self._server = await asyncio.start_server(self._serve, ADDRESS, port, limit=MAX_REQUEST)
        except OSError as error:
            log.warning("no page of metrics on port %d: %s", port, error)
        else:
            self._port = port
            log.info("metrics on http://%s:%d/", ADDRESS, port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server = self._port = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                async with asyncio.timeout(SECONDS):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self.answer(head))
                    await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, TimeoutError) as error:
            log.debug("the page of metrics: %s", error or type(error).__name__)
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def answer(self, head: bytes) -> bytes:
        """The response to a request's head."""
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        hosts = [line.partition(":")[2].strip() for line in lines[1:] if line.lower().startswith("host:")]
        if len(words) != 3 or len(hosts) != 1:
            return _response(HTTPStatus.BAD_REQUEST)
        if hosts[0].removesuffix(f":{self._port}").lower() not in _NAMES:
            return _response(HTTPStatus.MISDIRECTED_REQUEST)
        if words[0] != "GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        if words[1] == "/metrics":
            return _response(HTTPStatus.OK, _TEXT, prometheus(self._look()))
        if words[1] == "/":
            return _response(HTTPStatus.OK, _PAGE, page(self._look()))
        return _response(HTTPStatus.NOT_FOUND)


def prometheus(status: Status) -> str:
    """The text exposition format, version 0.0.4. What is not known is left out."""
    lines: list[str] = []
    for name, words, samples in _metrics(status):
        if samples:
            lines += [f"# HELP labapex_worker_{name} {words}", f"# TYPE labapex_worker_{name} gauge"]
            lines += [f"labapex_worker_{name}{_labels(labels)} {value:.17g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def page(status: Status) -> str:
    """The same figures for people."""
    rows = [
        (f"{name}{_labels(labels)}", words, f"{value:,.6g}")
        for name, words, samples in _metrics(status)
        for labels, value in samples
    ]
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    work = "takes work" if status.held is None else f"takes no work: {status.held}"
    return (
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5>"
        f"<title>{html.escape(status.name)} · Lab Apex worker</title>"
        "<style>body{font:16px system-ui;margin:2em}td{padding:.2em 1em .2em 0}</style>\n"
        f"<h1>{html.escape(status.name)}</h1>\n<p>{html.escape(work)}</p>\n"
        f"<table>\n{cells}</table>\n<p><a href=/metrics>for Prometheus</a></p>\n"
    )


Samples = list[tuple[dict[str, str], float]]


def _metrics(status: Status) -> Iterator[tuple[str, str, Samples]]:
    def one(value: float | None) -> Samples:
        return [] if value is None else [({}, float(value))]

    yield "connected", "1 while there is a connection to the platform.", one(status.connected_since is not None)
    yield "takes_work", "1 while it asks for work.", one(status.held is None)
    yield "spool_bytes", "Log that the platform does not hold yet.", one(status.spool_bytes)
    yield "spool_limit_bytes", "How much of it is kept before jobs hold theirs back.", one(status.spool_limit)
    yield "disk_free_bytes", "Free where jobs write.", one(status.disk_free)
    yield "power_watts", "Drawn by the GPU that draws most.", one(status.power_watts)
    yield "temperature_celsius", "Of the hottest GPU.", one(status.temperature)
    yield "price_micro_credits", "Asked for an hour of the next job.", one(status.limits.price_per_hour)
    leases = [({"lease": str(lease.lease), "job": str(lease.job)}, lease) for lease in status.leases]
    phases: Samples = [({**labels, "phase": lease.phase}, 1.0) for labels, lease in leases]
    done: Samples = [(labels, float(lease.iterations)) for labels, lease in leases]
    total: Samples = [(labels, float(lease.total)) for labels, lease in leases if lease.total is not None]
    yield "lease", "1 for each lease on this host, with its phase.", phases
    yield "lease_iterations", "Iterations whose losses came from the job.", done
    yield "lease_iterations_total", "Iterations of the whole job.", total


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _response(status: HTTPStatus, kind: str = _TEXT, body: str | None = None) -> bytes:
    data = (f"{status.phrase}\n" if body is None else body).encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n\r\n"
    )
    return head.encode() + data
