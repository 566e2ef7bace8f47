"""What is sent of a job, how often, and from where on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from tests.labapex.client.submitted import SPEC
from tests.labapex.memory_platform import (
    TOKEN,
    URL,
    MemoryPlatform,
    broken,
)

from labapex.client import Client
from labapex.client.connection import ATTEMPTS
from labapex.errors import (
    MalformedInput,
    NotEnoughCredit,
    PlatformUnreachable,
    UsageError,
)
from labapex.protocol.states import JobState


@contextmanager
def served(platform: MemoryPlatform) -> Iterator[str]:
    """The platform in memory behind a real HTTP server on this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            assert "Transfer-Encoding" not in self.headers
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = f"http://{self.headers['Host']}{self.path}"
            response = platform.handle(httpx.Request(self.command, url, headers=dict(self.headers), content=body))
            self.send_response(response.status_code)
            self.send_header("Content-Length", str(len(response.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.content)

        do_GET = do_HEAD = do_PUT = do_POST = answer

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_submit_uploads_only_what_the_platform_lacks(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    script = (job_folder / "train.py").read_bytes()
    digest = hashlib.sha256(script).hexdigest()
    platform.blobs[digest] = script
    told: list[tuple[int, int]] = []
    job = client.submit(SPEC, job_folder, lambda done, total: told.append((done, total)))
    assert job.state is JobState.SUBMITTED
    assert f"PUT blobs/{digest}/" not in platform.seen
    assert len([line for line in platform.seen if line.startswith("PUT")]) == 2
    total = sum(path.stat().st_size for path in job_folder.rglob("*") if path.suffix in {".py", ".npz"})
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_upload_that_broke_off_is_sent_again_from_its_beginning(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    platform.faults.extend([None, broken])  # the first HEAD passes, the first PUT breaks
    client.submit(SPEC, job_folder)
    assert len(platform.jobs) == 1


def test_an_upload_goes_on_where_it_broke_off_and_says_how_far_it_is(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    """Also where the process that began it is gone: what is on the platform is all that matters."""
    content = (job_folder / "data" / "digits.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    platform.begun[digest] = content[:6000]
    told: list[int] = []
    client.submit(SPEC, job_folder, lambda done, total: told.append(done))
    assert platform.blobs[digest] == content
    assert told == sorted(told)


def test_a_long_upload_lasts_as_long_as_each_attempt_gets_further(
    platform: MemoryPlatform, user_home: Path, job_folder: Path
) -> None:
    content = (job_folder / "data" / "digits.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    handle = platform.handle

    def lossy(request: httpx.Request) -> httpx.Response:
        begun = len(platform.begun.get(digest, b""))
        if request.method == "PUT" and digest in request.url.path and begun < 9000:
            platform.begun[digest] = content[: begun + 500]
            return broken(request)
        return handle(request)

    client = Client(URL, TOKEN, transport=httpx.MockTransport(lossy), sleep=lambda s: None)
    client.submit(SPEC, job_folder)
    assert platform.blobs[digest] == content


def test_an_upload_that_gets_no_further_is_given_up(
    platform: MemoryPlatform, user_home: Path, job_folder: Path
) -> None:
    puts: list[str] = []

    def stuck(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            puts.append(request.url.path)
            return broken(request)
        return platform.handle(request)

    client = Client(URL, TOKEN, transport=httpx.MockTransport(stuck), sleep=lambda s: None)
    with pytest.raises(PlatformUnreachable):
        client.submit(SPEC, job_folder)
    assert len(puts) == 2 * ATTEMPTS


def test_files_with_the_same_content_are_sent_once(platform: MemoryPlatform, client: Client, job_folder: Path) -> None:
    (job_folder / "copy.py").write_bytes((job_folder / "train.py").read_bytes())
    client.submit(SPEC, job_folder)
    assert len([line for line in platform.seen if line.startswith("PUT")]) == 3


def test_an_empty_file_travels_too(platform: MemoryPlatform, client: Client, job_folder: Path) -> None:
    (job_folder / "empty.py").write_bytes(b"")
    client.submit(SPEC, job_folder)
    assert platform.blobs[hashlib.sha256(b"").hexdigest()] == b""


def test_a_file_that_changes_while_it_is_sent_is_reported_as_that(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    def rewrite(done: int, total: int) -> None:
        (job_folder / "data" / "digits.npz").write_bytes(b"\x02" * 10_000)

    with pytest.raises(MalformedInput, match="changed while it was being sent"):
        client.submit(SPEC, job_folder, rewrite)


def test_a_file_that_shrinks_while_it_is_sent_is_named(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    def cut(done: int, total: int) -> None:
        (job_folder / "data" / "digits.npz").write_bytes(b"")

    with pytest.raises(UsageError, match=r"digits\.npz' became shorter"):
        client.submit(SPEC, job_folder, cut)


def test_a_budget_over_the_balance_is_not_enough_credit(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    platform.available = 1
    with pytest.raises(NotEnoughCredit, match="lower it"):
        client.submit(SPEC, job_folder)


def test_over_a_real_socket_an_upload_states_its_length_and_the_answer_is_read(
    platform: MemoryPlatform, user_home: Path, job_folder: Path
) -> None:
    """The transport in memory would not notice a body that is chunked or longer than stated."""
    with served(platform) as url, Client(url, TOKEN) as client:
        (job_folder / "data" / "large.bin").write_bytes(bytes(range(256)) * 8192)
        job = client.submit(SPEC, job_folder)
        assert client.job(job.id).state is JobState.SUBMITTED
    assert sum(map(len, platform.blobs.values())) > 2 << 20
