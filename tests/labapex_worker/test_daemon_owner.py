"""A daemon and its owner: what he allows, what he is told, and his commands."""

from __future__ import annotations

import base64
import csv
import json
import signal
import socket
from datetime import datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from tests.labapex_worker.cast import Cast

from labapex import sandbox
from labapex.protocol.api import Earning

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")


async def test_a_paused_worker_takes_no_job_tells_why_and_still_does_after_a_restart(cast: Cast) -> None:
    await cast.enrol()
    books = cast.gateway.books
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: books.ready)
    code, _, err = await cast.said("pause")
    assert (code, err) == (0, "No new job is taken. 0 jobs to go on with.\n")
    await cast.gateway.until(lambda: books.paused)
    assert books.paused == "its owner paused it"
    worker.send_signal(signal.SIGTERM)
    await cast.ended(worker)
    books.paused = ""
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: books.paused)
    _, out, _ = await cast.said("status", "--json")
    status = json.loads(out)
    assert (status["wish"], status["held"], status["leases"]) == ("pause", "its owner paused it", [])
    assert status["pid"]
    await cast.said("resume")
    await cast.gateway.until(lambda: books.ready)


async def test_a_drained_worker_finishes_its_job_takes_no_other_and_ends_though_it_is_killed_meanwhile(
    cast: Cast,
) -> None:
    await cast.enrol()
    held, other = cast.a_job(frames=10, wait_at=5), cast.a_job(frames=1)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    code, out, _ = await cast.said("drain", "--json")
    assert code == 0
    assert [(lease["job"], lease["process"]) for lease in json.loads(out)["leases"]] == [(str(held.grant.job), "runs")]
    await cast.gateway.offer(other)
    worker.kill()
    await worker.communicate()
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    assert "run empty" in await cast.ended(worker)
    assert worker.returncode == 0
    assert cast.gateway.books.waiting == [other]
    assert not cast.home.wish.exists(), "the next run works again"


async def test_a_wish_is_kept_where_no_daemon_runs(cast: Cast) -> None:
    await cast.enrol()
    code, _, err = await cast.said("pause")
    assert code == 0
    assert "No daemon runs here" in err
    _, out, _ = await cast.said("status", "--json")
    assert (json.loads(out)["pid"], json.loads(out)["wish"]) == (None, "pause")


async def test_limits_hold_at_once_and_are_shown(cast: Cast) -> None:
    await cast.enrol()
    books = cast.gateway.books
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: books.ready)
    code, out, err = await cast.said("limits", "--price", "2.5", "--disk", "200G", "--json")
    assert (code, err) == (0, "")
    assert (json.loads(out)["price_per_hour"], json.loads(out)["disk_bytes"]) == (2_500_000, 200 << 30)
    await cast.gateway.until(lambda: books.price)
    assert books.price == 2_500_000
    await cast.said("limits", "--max-temperature", "80")
    await cast.gateway.until(lambda: books.paused)
    assert books.paused == "the GPU does not tell its temperature, which is limited to 80 °C"
    _, out, _ = await cast.said("limits")
    assert "80 °C, after 60 s jobs are given back" in out
    await cast.said("limits", "--max-temperature", "none")
    await cast.gateway.until(lambda: not books.paused)


async def test_a_job_that_runs_is_given_back_when_hard_hours_end(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=10, wait_at=5)
    await cast.gateway.offer(held)
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    soon = datetime.now() + timedelta(hours=6)
    hours = f"{soon:%H:%M}-{soon + timedelta(hours=6):%H:%M}"
    await cast.said("limits", "--hours", hours, "--hard-hours")
    await cast.gateway.until(lambda: held.failed)
    assert held.failed == f"the owner of the host took it back: it works {hours} by its own clock"


async def test_the_daemons_log_names_leases_and_jobs_and_holds_no_secret(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=3)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once", "--verbose")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    lines = [json.loads(line) for line in err.splitlines()]
    about = [line for line in lines if line.get("lease") == str(held.grant.lease)]
    assert {line["job"] for line in about} == {str(held.grant.job)}
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    private, released = cast.home.key.read_bytes(), held.run_key
    for secret in (private, released, cast.authority.private("manifest")):
        assert secret.hex() not in err
        assert base64.b64encode(secret).decode().rstrip("=") not in err
    assert held.grant.token not in err


async def test_a_page_of_metrics_is_there_once_its_owner_wants_it_and_tells_no_secret(cast: Cast) -> None:
    await cast.enrol()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    held = cast.a_job(frames=10, wait_at=5)
    await cast.gateway.offer(held)
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    code, _, err = await cast.said("limits", "--metrics-port", str(port))
    assert (code, err) == (0, "")
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    assert f'labapex_worker_lease_iterations{{lease="{held.grant.lease}",job="{held.grant.job}"}} 10' in text
    assert held.grant.token not in text


async def test_earnings_come_from_the_platform_job_by_job_with_the_total_of_each_day(cast: Cast) -> None:
    await cast.enrol()
    assert "No job" in (await cast.said("earnings"))[2]
    noon = datetime(2026, 3, 1, 12).timestamp()
    for number, (paid, day) in enumerate([(500_000, 0), (250_000, 0), (1_000_000, 1)]):
        cast.gateway.earned.append(
            Earning(
                job=uuid4(), name="=HYPERLINK(evil)\x1b[2J" if number == 2 else "digits", verdict="verified",
                verified_epochs=2, paid=paid, settled_at=noon + 86_400 * day + number,
            )
        )  # fmt: skip
    code, out, _ = await cast.said("earnings")
    assert code == 0
    lines = {line.split()[1]: line for line in out.splitlines() if " job" in line}
    assert "0.75" in lines["2026-03-01"]
    assert "1.75" in lines["all"]
    assert "\x1b" not in out
    _, out, _ = await cast.said("earnings", "--csv")
    assert [row["credits"] for row in csv.DictReader(out.splitlines())] == ["0.5", "0.25", "1"]
    assert "'=HYPERLINK" in out
    _, out, _ = await cast.said("earnings", "--json")
    assert [row["paid"] for row in json.loads(out)] == [500_000, 250_000, 1_000_000]


async def test_two_daemons_cannot_share_a_home(cast: Cast) -> None:
    await cast.enrol()
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.connections)
    code, _, err = await cast.said("run")
    assert code == 2
    assert "another daemon" in err
    _, out, _ = await cast.said("check", "--json")
    (limits,) = [each for each in json.loads(out) if each["what"] == "limits"]
    assert limits["detail"].startswith("the watch alone: no control groups (version 2) are delegated")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("enrol", "bad", "--platform", "{url}"), 2, "this code is not valid"),
        (("enrol", "good", "--platform", "http://apex.example.org"), 2, "not encrypted"),
        (("enrol", "good", "--platform", "apex"), 2, "no address"),
        (("enrol", "good", "--platform", "http://127.0.0.1:9"), 6, "no answer"),
        (("run",), 2, "no worker is enrolled"),
        (("status",), 2, "no worker is enrolled"),
        (("pause",), 2, "no worker is enrolled"),
        (("limits",), 2, "no worker is enrolled"),
    ],
)
async def test_what_goes_wrong_is_one_line_and_an_exit_code(
    cast: Cast, arguments: tuple[str, ...], code: int, words: str
) -> None:
    got, _, err = await cast.said(*(part.replace("{url}", cast.gateway.url) for part in arguments))
    assert got == code
    assert words in err
    assert "Traceback" not in err


async def test_check_says_what_is_there_and_inspect_tells_what_this_host_would_start(cast: Cast) -> None:
    code, out, _ = await cast.said("check")
    assert code == 1
    assert "no worker is enrolled" in out
    await cast.enrol()
    code, out, _ = await cast.said("check")
    assert "bubblewrap works" in out
    _, out, _ = await cast.said("check", "--json")
    found = json.loads(out)
    assert {"what": "sandbox", "good": True, "required": True, "detail": "bubblewrap works"} in found
    (limits,) = [each for each in found if each["what"] == "limits"]
    assert limits["detail"] == "the watch; whether control groups is seen when the daemon runs"
    held = cast.a_job(frames=1)
    code, out, _ = await cast.said("inspect", str(cast.folder / held.grant.lease.hex / "whole"))
    assert code == 0
    assert str(held.grant.lease) in out
    cast.home.trust.unlink()
    code, out, _ = await cast.said("inspect", str(cast.folder / held.grant.lease.hex / "whole"), "--json")
    assert code == 1
    assert json.loads(out)["trusted"] is False


async def test_the_key_is_made_on_the_host_and_closed_to_others(cast: Cast) -> None:
    await cast.enrol()
    assert cast.home.key.stat().st_mode & 0o077 == 0
    assert cast.home.config.stat().st_mode & 0o077 == 0
    assert cast.home.path.stat().st_mode & 0o077 == 0
    cast.home.key.chmod(0o644)
    code, _, err = await cast.said("run")
    assert code == 2
    assert "chmod 600" in err
