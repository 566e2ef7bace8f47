from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from tests.labapex.memory_platform import (
    SAMPLE,
    TOKEN,
    URL,
    Chapter,
    MemoryPlatform,
    broken,
    happy_story,
    problem,
    unavailable,
    unreachable,
)

from labapex.client import Client, check_verdict, credentials
from labapex.client.connection import ATTEMPTS
from labapex.errors import (
    LabApexError,
    MalformedInput,
    MissingScope,
    NotEnoughCredit,
    NotFinished,
    NotFound,
    NotLoggedIn,
    PlatformUnreachable,
    Tampered,
    UsageError,
    VerificationRejected,
)
from labapex.protocol.spec import JobSpec
from labapex.protocol.states import JobState

SPEC = JobSpec.model_validate({"script": "train.py", "data": "data", "epochs": 3, "budget": 10})


@pytest.fixture
def sleeps() -> list[float]:
    return []


@pytest.fixture
def client(platform: MemoryPlatform, user_home: Path, sleeps: list[float]) -> Client:
    return Client(URL, TOKEN, transport=platform.transport, sleep=sleeps.append, jitter=lambda: 1.0)


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


def finished(platform: MemoryPlatform, client: Client, spec: JobSpec = SPEC) -> UUID:
    """A job whose story was told to its end."""
    job = platform.add(spec).id
    list(client.follow(job))
    return job


# -- who is asked, and with which token --------------------------------------------------------------------------------


def test_login_makes_a_token_that_is_used_from_then_on(platform: MemoryPlatform, user_home: Path) -> None:
    client = Client(URL, transport=platform.transport)
    assert client.login("ada", "secret").token == TOKEN
    assert client.me().username == "ada"


def test_a_wrong_password_is_said_and_not_tried_again(platform: MemoryPlatform, user_home: Path) -> None:
    client = Client(URL, transport=platform.transport)
    with pytest.raises(NotLoggedIn, match="wrong user name or password"):
        client.login("ada", "wrong")
    assert len(platform.seen) == 1


def test_a_refused_token_is_named_by_its_source_and_first_characters(
    platform: MemoryPlatform, user_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABAPEX_TOKEN", "old-token-that-was-revoked")
    client = Client(URL, transport=platform.transport)
    with pytest.raises(NotLoggedIn, match=r"'old-to…' from the environment variable LABAPEX_TOKEN") as caught:
        client.me()
    assert "revoked" not in str(caught.value)


def test_the_environment_beats_the_stored_login_and_the_argument_beats_both(user_home: Path) -> None:
    entry = credentials.Login(username="ada", token="from-the-file")
    credentials.save(credentials.Logins(current=URL, platforms={URL: entry}))
    address, token = credentials.resolve(None, None, {})
    assert (address, token and token.text) == (URL, "from-the-file")
    _, token = credentials.resolve(None, None, {"LABAPEX_TOKEN": "from-the-environment"})
    assert token
    assert token.text == "from-the-environment"
    _, token = credentials.resolve(None, "given", {"LABAPEX_TOKEN": "from-the-environment"})
    assert token
    assert token.text == "given"


def test_a_stored_token_never_goes_to_another_platform(platform: MemoryPlatform, user_home: Path) -> None:
    entry = credentials.Login(username="ada", token=TOKEN)
    credentials.save(credentials.Logins(current=URL, platforms={URL: entry}))
    client = Client("https://evil.test", transport=platform.transport)
    with pytest.raises(NotLoggedIn, match=r"labapex login --url https://evil\.test"):
        client.me()
    assert platform.seen == []


def test_a_redirect_is_not_followed_with_the_token(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: httpx.Response(302, headers={"Location": "https://evil.test/"}))
    with pytest.raises(UsageError, match=r"redirects to https://evil\.test/"):
        client.me()
    assert len(platform.seen) == 1


def test_the_login_file_is_for_its_owner_alone(user_home: Path) -> None:
    credentials.save(credentials.Logins())
    assert stat.S_IMODE(credentials.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(credentials.path().parent.stat().st_mode) == 0o700


def test_a_damaged_login_file_says_what_to_do(user_home: Path) -> None:
    credentials.path().parent.mkdir(parents=True)
    credentials.path().write_text("{")
    with pytest.raises(UsageError, match="delete it and run `labapex login`"):
        Client()


def test_without_a_platform_the_error_says_how_to_name_one(user_home: Path) -> None:
    with pytest.raises(NotLoggedIn, match="LABAPEX_URL"):
        Client()


@pytest.mark.parametrize("token", ["with space", "line\nfeed", "ü", "x" * 501])
def test_a_token_that_cannot_be_a_header_is_refused_with_its_source(user_home: Path, token: str) -> None:
    with pytest.raises(NotLoggedIn, match="the program's own argument"):
        Client(URL, token)


@pytest.mark.parametrize(
    "url", ["apex.test", "ftp://apex.test", "https://", "https://u:p@apex.test", "http://a:99999999"]
)
def test_an_address_that_is_none_is_refused(user_home: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"https://apex\.example\.org"):
        Client(url)


def test_the_token_is_not_in_the_representation_of_what_holds_it() -> None:
    assert TOKEN not in repr(credentials.Token(TOKEN, "a test"))
    assert TOKEN not in repr(credentials.Login(username="ada", token=TOKEN))


# -- retries -----------------------------------------------------------------------------------------------------------


def test_what_may_be_repeated_is_repeated_with_growing_pauses(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.faults.extend([unreachable, broken, unavailable])
    assert client.me().username == "ada"
    assert sleeps == [0.25, 0.5, 7.0]  # the last one is what Retry-After asked for


def test_a_date_in_retry_after_is_understood(platform: MemoryPlatform, user_home: Path, sleeps: list[float]) -> None:
    date = "Fri, 20 Nov 2026 12:00:07 GMT"
    platform.faults.append(lambda request: httpx.Response(429, headers={"Retry-After": date}))
    now = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC).timestamp()
    client = Client(URL, TOKEN, transport=platform.transport, sleep=sleeps.append, now=lambda: now)
    client.me()
    assert sleeps == [7.0]


def test_who_is_told_to_come_again_in_an_hour_is_told_so(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.faults.append(lambda request: problem(429, "throttled", "too many requests", **{"Retry-After": "3600"}))
    with pytest.raises(LabApexError, match="too many requests"):
        client.me()
    assert sleeps == []


def test_patience_ends_and_says_who_did_not_answer(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.extend([unreachable] * ATTEMPTS)
    with pytest.raises(PlatformUnreachable, match=r"https://apex\.test does not answer \(connection refused\)"):
        client.me()
    assert len(platform.seen) == ATTEMPTS


def test_a_busy_platform_is_unreachable_in_the_end(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.extend([unavailable] * ATTEMPTS)
    with pytest.raises(PlatformUnreachable, match="503"):
        client.me()


def test_a_login_that_may_have_arrived_is_not_sent_twice(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(broken)
    with pytest.raises(PlatformUnreachable):
        client.login("ada", "secret")
    assert len(platform.seen) == 1


def test_a_job_whose_answer_was_lost_is_not_submitted_twice(
    platform: MemoryPlatform, client: Client, job_folder: Path
) -> None:
    lost = [False]
    handle = platform.handle

    def lose_the_first_answer(request: httpx.Request) -> httpx.Response:
        response = handle(request)
        if request.url.path == "/api/v1/jobs/" and request.method == "POST" and not lost[0]:
            lost[0] = True
            return broken(request)
        return response

    client = Client(URL, TOKEN, transport=httpx.MockTransport(lose_the_first_answer), sleep=lambda s: None)
    client.submit(SPEC, job_folder)
    assert lost[0]
    assert len(platform.jobs) == 1


# -- problems ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid", UsageError),
        (402, "not-enough-credit", NotEnoughCredit),
        (404, "not-found", NotFound),
        (404, "not-finished", NotFinished),
        (409, "not-finished", NotFinished),
        (413, "too-large", UsageError),
        (422, "digest-mismatch", MalformedInput),
        (409, "conflict", LabApexError),
        (500, "internal", PlatformUnreachable),
    ],
)
def test_a_problem_becomes_the_error_with_its_exit_code(
    platform: MemoryPlatform, client: Client, status: int, code: str, kind: type[LabApexError]
) -> None:
    platform.faults.append(lambda request: problem(status, code, "because of this"))
    with pytest.raises(kind, match="because of this") as caught:
        client.me()
    assert type(caught.value) is kind


def test_a_problem_names_the_fields_that_are_wrong(platform: MemoryPlatform, client: Client) -> None:
    body = {"title": "x", "status": 400, "detail": "not accepted", "code": "invalid", "errors": {"epochs": "too many"}}
    platform.faults.append(lambda request: httpx.Response(400, json=body))
    with pytest.raises(UsageError, match=r"not accepted \(epochs: too many\)"):
        client.me()


def test_a_reply_that_does_not_follow_the_protocol_is_refused(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: httpx.Response(200, json={"username": "ada", "admin": True}))
    with pytest.raises(MalformedInput, match="Me: "):
        client.me()


# -- submitting --------------------------------------------------------------------------------------------------------


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


# -- following ---------------------------------------------------------------------------------------------------------


def test_follow_tells_everything_once_and_ends_with_the_job(platform: MemoryPlatform, client: Client) -> None:
    job = platform.add(SPEC).id
    losses = [loss for events in client.follow(job) for loss in events.losses]
    assert losses == [2.0 / (i + 1) for i in range(10)] + [None, 0.1]
    assert client.job(job).state is JobState.VERIFIED


def test_follow_outlives_a_platform_that_is_away_and_loses_nothing(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    job = platform.add(SPEC).id
    trouble: list[str] = []
    following = client.follow(job, on_trouble=lambda error: trouble.append(str(error)))
    told = [next(following), next(following)]
    platform.faults.extend([unreachable] * (3 * ATTEMPTS))
    told += following
    assert [loss for events in told for loss in events.losses] == [2.0 / (i + 1) for i in range(10)] + [None, 0.1]
    assert len(trouble) == 3


def test_follow_outlives_an_error_inside_the_platform(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: problem(500, "internal", "something went wrong"))
    assert [events.job.state for events in client.follow(platform.add(SPEC).id)][-1] is JobState.VERIFIED


def test_follow_gives_up_when_nobody_answers_for_longer_than_its_patience(
    platform: MemoryPlatform, client: Client
) -> None:
    job = platform.add(SPEC).id
    platform.faults.extend([unreachable] * (50 * ATTEMPTS))
    with pytest.raises(PlatformUnreachable):
        list(client.follow(job, patience=60))


def test_what_was_said_together_with_the_end_is_told_to_its_last_page(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.story = [
        Chapter(JobState.VERIFIED, losses=(1.0,)),
        Chapter(JobState.VERIFIED, losses=(0.5,)),
        Chapter(JobState.VERIFIED, samples=(SAMPLE,)),
    ]
    job = platform.add(SPEC).id
    told = list(client.follow(job))
    assert [events.first for events in told if events.losses] == [0, 1]
    assert told[2].samples == (SAMPLE,)
    assert sleeps == []


def test_all_jobs_walks_every_page(platform: MemoryPlatform, client: Client) -> None:
    ids = [platform.add(SPEC).id for _ in range(5)]
    assert [job.id for job in client.all_jobs()] == list(reversed(ids))


# -- results -----------------------------------------------------------------------------------------------------------


def test_pull_writes_the_weights_and_the_verdict_that_names_them(
    platform: MemoryPlatform, client: Client, tmp_path: Path
) -> None:
    job = finished(platform, client)
    pulled = client.pull(job, tmp_path / "result")
    assert pulled.weights.read_bytes() == platform.weights
    assert pulled.size == len(platform.weights)
    found = sorted(path.name for path in (tmp_path / "result").iterdir())
    assert found == ["certificate.json", "model.safetensors", "verdict.json"]


def test_other_weights_than_the_verdict_names_never_get_a_name(
    platform: MemoryPlatform, client: Client, tmp_path: Path
) -> None:
    job = finished(platform, client)
    platform.faults.extend([None] * 4 + [lambda request: httpx.Response(200, content=b"stolen model")])
    with pytest.raises(Tampered, match="not those that the verdict names"):
        client.pull(job, tmp_path / "result")
    assert list((tmp_path / "result").iterdir()) == []


def test_a_download_that_breaks_off_begins_again(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    job = finished(platform, client)
    platform.faults.extend([None] * 4 + [broken])
    assert client.pull(job, tmp_path).weights.read_bytes() == platform.weights


def test_a_verdict_signed_by_another_key_is_refused(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    job = finished(platform, client)
    with pytest.raises(Tampered, match="signature"):
        client.pull(job, tmp_path, key=b"\x01" * 32)


def test_a_verdict_about_another_job_is_refused(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    mine, other = finished(platform, client), finished(platform, client)
    signed = platform.verdict(platform.jobs[other].view)
    platform.faults.append(lambda request: httpx.Response(200, content=signed.model_dump_json()))
    with pytest.raises(Tampered, match="verdict of another job"):
        client.checked_verdict(mine)


def test_a_changed_verdict_fails_its_signature(platform: MemoryPlatform, client: Client) -> None:
    signed = client.verdict(finished(platform, client))
    changed = signed.model_copy(update={"verdict": signed.verdict.model_copy(update={"verified_epochs": 99})})
    assert check_verdict(signed, platform.public_key) == signed.verdict
    with pytest.raises(Tampered):
        check_verdict(changed, platform.public_key)


def test_a_rejected_job_has_nothing_to_pull(platform: MemoryPlatform, client: Client, tmp_path: Path) -> None:
    platform.rejected_by = "replay"
    platform.story = [*happy_story()[:-1], Chapter(JobState.REJECTED, reason="replay failed")]
    with pytest.raises(VerificationRejected, match="rule 'replay'"):
        client.pull(finished(platform, client), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_job_that_goes_on_has_no_verdict_yet(platform: MemoryPlatform, client: Client) -> None:
    with pytest.raises(NotFinished):
        client.verdict(platform.add(SPEC).id)


def test_a_device_login_asks_slower_when_it_is_told_to(
    platform: MemoryPlatform, client: Client, sleeps: list[float]
) -> None:
    platform.words.extend(["authorization-pending", "slow-down", "slow-down"])
    assert client.await_login(client.begin_login("laptop")).token == TOKEN
    assert sleeps == [5.0, 5.0, 10.0, 15.0]


def test_a_device_login_that_nobody_answers_ends(platform: MemoryPlatform, client: Client) -> None:
    platform.words.extend(["authorization-pending"] * 1000)
    with pytest.raises(NotLoggedIn, match="in time"):
        client.await_login(client.begin_login())


def test_a_token_for_other_things_says_which_scope_is_missing(platform: MemoryPlatform, client: Client) -> None:
    platform.faults.append(lambda request: problem(403, "missing-scope", "this needs the scope jobs:write"))
    with pytest.raises(MissingScope, match="jobs:write") as caught:
        client.me()
    assert caught.value.code == "missing-scope"


def test_an_enrolment_code_is_asked_for_once(platform: MemoryPlatform, client: Client) -> None:
    assert client.enrolment_code().code == "ABCD-EFGH"


def test_the_client_needs_no_tensor_library() -> None:
    check = "import sys, labapex.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'django')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
