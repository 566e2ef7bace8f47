"""The big files of a lease: out to its worker only, from any byte on; in only what was asked for, whole and in time."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from django.db.models import F
from tests import wheels
from tests.labapex_server.gateway.stage import Host, Run, a_challenge, a_host, a_run, a_state, queued_job
from tests.labapex_server.scenes import finished

from labapex import executable
from labapex.protocol.manifest import Manifest
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.gateway import files
from labapex_server.jobs import packages
from labapex_server.jobs.models import Job
from labapex_server.lib import clock, trust
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.offload import offload
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge, OpenedState

STATE = a_state()


def bearer(run: Run, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {run.token}", **more}


def executable_url(run: Run) -> str:
    return f"/gateway/leases/{run.lease.pk}/executable"


def state_url(run: Run, index: int) -> str:
    return f"/gateway/leases/{run.lease.pk}/states/{index}"


@pytest.fixture
async def http(platform: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=platform, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def challenged(run: Run) -> Run:
    """A run whose log is complete, of which leaves 0 and 2 are asked for."""
    a_challenge(run)
    return run


async def test_chunks_come_in_by_the_same_door_and_of_one_length_alone(
    platform: str, http: httpx.AsyncClient, rig: Host, researcher: User
) -> None:
    run = await offload(a_run, await offload(queued_job, researcher, layout=True), rig)
    job = await offload(finished, run)
    await offload(lambda: verification.challenge(verification.finished_lease(job)))
    url, answer = f"/gateway/leases/{run.lease.pk}/chunks/0", run.executable.answer()
    for wrong in (answer[:-1], answer + b"x", b""):
        assert (await http.put(url, headers=bearer(run), content=wrong)).status_code == 422
    assert (await http.put(url[:-1] + "1", headers=bearer(run), content=answer)).status_code == 404
    assert (await http.put(url, headers=bearer(run), content=answer)).json() == {"stored": True, "new": True}
    assert (await http.put(url, headers=bearer(run), content=answer)).json() == {"stored": True, "new": False}


# -- the executable ----------------------------------------------------------------------------------------------------


async def test_an_executable_comes_whole_and_passes_verification(
    http: httpx.AsyncClient, run: Run, tmp_path: Path
) -> None:
    answer = await http.get(executable_url(run), headers=bearer(run))
    made = await offload(marketplace.executable_parts, run.lease)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content) == made.size
    (tmp_path / "executable").write_bytes(answer.content)
    manifest = executable.verify(tmp_path / "executable", trust.current(), run.host.worker.pk, clock.now().timestamp())
    assert manifest.contract.lease == run.lease.pk


@pytest.mark.parametrize("cut", [1, 1_000_000, 2_099_999])
async def test_a_download_goes_on_where_it_stopped(http: httpx.AsyncClient, run: Run, cut: int) -> None:
    whole = (await http.get(executable_url(run), headers=bearer(run))).content
    rest = await http.get(executable_url(run), headers=bearer(run, Range=f"bytes={cut}-"))
    assert rest.status_code == 206
    assert rest.headers["content-range"] == f"bytes {cut}-{len(whole) - 1}/{len(whole)}"
    assert rest.content == whole[cut:]
    middle = await http.get(executable_url(run), headers=bearer(run, Range=f"bytes={cut}-{cut + 9}"))
    assert middle.content == whole[cut : cut + 10]


async def test_a_wheel_comes_to_the_lease_that_needs_it_and_to_no_other(
    http: httpx.AsyncClient, run: Run, tmp_path: Path
) -> None:
    lock, found = wheels.locked([wheels.make(tmp_path, "alpha")])
    other, elsewhere = wheels.locked([wheels.make(tmp_path, "beta")])
    torch, supplied = wheels.supplied(wheels.a_torch(tmp_path))
    for wheel, path in {**found, **elsewhere, **supplied}.items():
        packages.path(wheel).parent.mkdir(parents=True, exist_ok=True)
        packages.path(wheel).write_bytes(path.read_bytes())
    named = Manifest.model_validate(run.lease.manifest).model_copy(update={"requirements": lock, "torch": torch})
    await offload(Lease.objects.filter(pk=run.lease.pk).update, manifest=named.model_dump(mode="json"))
    (alpha,), (beta,) = lock.wheels, other.wheels
    url = f"/gateway/leases/{run.lease.pk}/wheels/"
    answer = await http.get(url + alpha.sha256, headers=bearer(run))
    assert (answer.status_code, answer.content) == (200, found[alpha].read_bytes())
    rest = await http.get(url + alpha.sha256, headers=bearer(run, Range="bytes=100-"))
    assert (rest.status_code, rest.content) == (206, answer.content[100:])
    answer = await http.get(url + torch.packages.wheels[0].sha256, headers=bearer(run))
    assert (answer.status_code, len(answer.content)) == (200, torch.packages.size)
    assert (await http.get(url + beta.sha256, headers=bearer(run))).status_code == 404
    assert (await http.get(url + alpha.sha256)).status_code == 401
    assert (await http.put(url + alpha.sha256, headers=bearer(run), content=b"x")).status_code == 405


async def test_a_range_beyond_the_end_is_refused(http: httpx.AsyncClient, run: Run) -> None:
    answer = await http.get(executable_url(run), headers=bearer(run, Range="bytes=999999999-"))
    assert answer.status_code == 416


async def test_a_head_says_the_size_alone(http: httpx.AsyncClient, run: Run) -> None:
    answer = await http.head(executable_url(run), headers=bearer(run))
    assert int(answer.headers["content-length"]) > 2_000_000
    assert answer.content == b""


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic x"}])
async def test_nothing_without_the_token(http: httpx.AsyncClient, run: Run, header: dict[str, str]) -> None:
    for method, url in (("GET", executable_url(run)), ("PUT", state_url(run, 0))):
        answer = await http.request(method, url, headers=header)
        assert answer.status_code == 401
        assert answer.json()["code"] == "bad-token"


async def test_a_token_opens_its_own_lease_only(
    http: httpx.AsyncClient, run: Run, researcher: User, cheat: User
) -> None:
    job = await offload(queued_job, researcher)
    other = await offload(a_run, job, await offload(a_host, cheat, "stranger"))
    for url in (executable_url(other), f"/gateway/leases/{uuid.uuid4()}/executable"):
        assert (await http.get(url, headers=bearer(run))).status_code == 401


async def test_a_token_of_a_lease_that_is_over_opens_nothing(http: httpx.AsyncClient, run: Run) -> None:
    await offload(marketplace.fail, run.lease, "the script failed")
    assert (await http.get(executable_url(run), headers=bearer(run))).status_code == 401


@pytest.mark.parametrize(
    "path", ["states/", "states/-1", "states/9999999999999999999", "x", "executable/x", "states/1/2"]
)
async def test_other_addresses_are_nothing(http: httpx.AsyncClient, run: Run, path: str) -> None:
    answer = await http.get(f"/gateway/leases/{run.lease.pk}/{path}", headers=bearer(run))
    assert answer.status_code == 404


async def test_a_client_that_leaves_ends_its_download(platform: str, http: httpx.AsyncClient, run: Run) -> None:
    async with http.stream("GET", executable_url(run), headers=bearer(run)) as answer:
        async for _ in answer.aiter_raw(1000):
            break
    assert (await http.get(executable_url(run), headers=bearer(run, Range="bytes=0-3"))).content == b"\x7fELF"


# -- opened states -----------------------------------------------------------------------------------------------------


async def test_opened_states_are_stored_and_the_last_one_hands_the_job_on(
    http: httpx.AsyncClient, challenged: Run
) -> None:
    for index in (0, 2):
        answer = await http.put(state_url(challenged, index), headers=bearer(challenged), content=STATE)
        assert (answer.status_code, answer.json()) == (200, {"stored": True, "new": True})
    stored = await offload(lambda: list(OpenedState.objects.order_by("index")))
    assert [state.path.read_bytes() for state in stored] == [STATE, STATE]
    job = await offload(Job.objects.get, pk=challenged.lease.job_id)
    assert job.state == JobState.VERIFYING


async def test_a_state_sent_again_is_answered_without_being_read(http: httpx.AsyncClient, challenged: Run) -> None:
    for new in (True, False):
        answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=STATE)
        assert answer.json() == {"stored": True, "new": new}


async def test_a_state_that_was_not_asked_for_is_refused(http: httpx.AsyncClient, challenged: Run) -> None:
    for index in (1, 3, 10**6):
        answer = await http.put(state_url(challenged, index), headers=bearer(challenged), content=STATE)
        assert answer.status_code == 404


async def test_no_state_is_taken_before_the_challenge(http: httpx.AsyncClient, run: Run) -> None:
    assert (await http.put(state_url(run, 0), headers=bearer(run), content=STATE)).status_code == 404


@pytest.mark.parametrize("content", [STATE + b"\0", STATE[:-1], b""])
async def test_a_state_of_another_size_than_committed_is_refused(
    http: httpx.AsyncClient, challenged: Run, content: bytes
) -> None:
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=content)
    assert answer.status_code == 422
    assert not await offload(OpenedState.objects.exists)


async def test_a_length_must_be_announced(http: httpx.AsyncClient, challenged: Run) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield STATE

    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=chunks())
    assert answer.status_code == 411


async def test_a_state_after_the_deadline_is_refused(http: httpx.AsyncClient, challenged: Run) -> None:
    await offload(Challenge.objects.update, deadline=clock.after(-1))
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=STATE)
    assert answer.status_code == 409


@pytest.mark.parametrize(
    "content", [bytes(128), b"\xff" * 128, a_state(124) + b"\0" * 4, b"\x02\0\0\0\0\0\0\0[]" + bytes(118)]
)
async def test_what_is_no_safetensors_is_refused_and_forgotten(
    http: httpx.AsyncClient, challenged: Run, content: bytes, home: Path
) -> None:
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=content)
    assert 400 <= answer.status_code < 500
    assert not await offload(OpenedState.objects.exists)
    assert [path for path in (home / "leases").rglob("*") if path.is_file()] == []


async def test_a_state_beyond_every_limit_is_refused_before_it_is_read(
    http: httpx.AsyncClient, challenged: Run, settings: Any
) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"result_limit_bytes": 127})
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=STATE)
    assert answer.status_code == 413


async def test_an_upload_that_stops_half_way_leaves_nothing(
    platform: str, http: httpx.AsyncClient, challenged: Run, home: Path
) -> None:
    await begin_upload(platform, challenged, STATE[:20]).aclose()
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=STATE)
    assert answer.json()["new"]
    while incoming := list((home / "leases").rglob("incoming/*")):
        await asyncio.sleep(0.01)
    assert incoming == []


async def test_an_upload_that_does_not_move_is_ended_and_may_be_tried_again(
    platform: str, http: httpx.AsyncClient, challenged: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "IDLE_SECONDS", 0.05)
    slow = begin_upload(platform, challenged, STATE[:20])
    assert b" 408 " in await slow.first_line()
    await slow.aclose()
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=STATE)
    assert answer.status_code == 200


async def test_an_upload_does_not_outlive_the_deadline(platform: str, challenged: Run) -> None:
    await offload(Challenge.objects.update, deadline=clock.after(0.2))
    slow = begin_upload(platform, challenged, STATE[:20])
    assert (await slow.first_line()).split()[1] in (b"410", b"409")
    await slow.aclose()


async def test_uploads_of_one_lease_at_the_same_time_are_limited(
    platform: str, http: httpx.AsyncClient, challenged: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "UPLOADS_PER_LEASE", 1)
    first = begin_upload(platform, challenged, STATE[:20])
    await first.sent()
    while not files._uploading:
        await asyncio.sleep(0.01)
    answer = await http.put(state_url(challenged, 2), headers=bearer(challenged), content=STATE)
    assert answer.status_code == 429
    await first.aclose()


class SlowUpload:
    """A PUT whose body stops coming."""

    def __init__(self, platform: str, request: bytes) -> None:
        self._address = urlsplit(platform)
        self._request = request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def sent(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._address.hostname, self._address.port)
            self._streams[1].write(self._request)
            await self._streams[1].drain()
        return self._streams

    async def first_line(self) -> bytes:
        reader, _ = await self.sent()
        return await reader.readline()

    async def aclose(self) -> None:
        _, writer = await self.sent()
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.close()


def begin_upload(platform: str, run: Run, part: bytes) -> SlowUpload:
    head = (
        f"PUT {state_url(run, 0)} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {run.token}\r\n"
        f"Content-Length: {len(STATE)}\r\n\r\n"
    )
    return SlowUpload(platform, head.encode() + part)


async def test_a_leaf_that_claims_more_than_it_has_gains_nothing(http: httpx.AsyncClient, challenged: Run) -> None:
    await offload(lambda: challenged.lease.log.leaves.update(size=F("size") + 1))
    answer = await http.put(state_url(challenged, 0), headers=bearer(challenged), content=STATE)
    assert answer.status_code == 422
    assert await offload(lambda: Lease.objects.get().opened.count()) == 0
