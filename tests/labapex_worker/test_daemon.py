"""A real daemon process against a gateway on this machine: real socket, real SQLite, real sandbox, real kill -9."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import json
import signal
import socket
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from tests import wheels
from tests.labapex.authority import Authority
from tests.labapex_worker.cast import Cast, rows
from tests.labapex_worker.platform_double import Held
from tests.labapex_worker.speed import chain
from tests.nvml import traces

from labapex import sandbox
from labapex.protocol.api import Earning
from labapex.protocol.canonical import canonical
from labapex.protocol.frames import TrialAnswer, TrialBegin, TrialPart, TrialPrepare, TrialReady, TrialShow
from labapex.trust import fingerprint
from labapex_worker import journal, packages
from labapex_worker.supervisor import Folder

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")


async def test_a_job_runs_from_grant_to_release_and_leaves_nothing_behind(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=20, states=3, challenge=(0, 2))
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.states) == 2)
    code, shown, _ = await cast.said("status")
    assert code == 0
    assert "digits" in shown
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    assert worker.returncode == 0, err
    assert cast.losses(held) == [float(n) for n in range(40)]
    assert held.fin is not None
    assert held.states == {0: b"state 0 " * 1000, 2: b"state 2 " * 1000}
    assert list((cast.home.path / "jobs").iterdir()) == []
    assert rows(cast.home) == []
    assert held.grant.token not in err


async def test_a_job_that_asks_for_more_than_the_owner_allows_is_not_started_and_not_called_a_failure(
    cast: Cast,
) -> None:
    await cast.enrol()
    assert (await cast.said("limits", "--memory", "1G"))[0] == 0
    large, small = cast.a_job(memory=3 << 29), cast.a_job(memory=1 << 30, frames=2)
    cast.gateway.books.waiting += [large, small]
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: small.fin)
    assert large.declined
    assert large.failed == "the job asks for 1.5 GiB of memory, and 1 GiB are to be had"
    assert large.frames == []
    assert cast.gateway.books.room is not None
    assert cast.gateway.books.room.memory == 1 << 30
    worker.kill()
    await worker.communicate()


async def test_a_worker_that_is_to_end_after_one_job_begins_no_other_while_it_waits_for_the_verdict(cast: Cast) -> None:
    await cast.enrol()
    held, other = cast.a_job(frames=2, states=1, challenge=(0,)), cast.a_job(frames=2)
    await cast.gateway.offer(held)
    await cast.gateway.offer(other)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.states)
    assert cast.gateway.books.waiting == [other]
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.gateway.books.waiting == [other]


async def test_a_daemon_killed_in_the_middle_of_a_job_is_followed_by_one_that_goes_on(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=30, wait_at=12, states=1, challenge=(0,))
    await cast.gateway.offer(held)
    first = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 12)
    first.kill()
    await first.communicate()
    assert isinstance(journal.look(cast.home.lease(held.grant.lease)), journal.Alive), "the job outlives the daemon"
    second = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.states)
    await cast.gateway.release(held.grant.lease)
    assert "still runs" in await cast.ended(second)
    assert cast.losses(held) == [float(n) for n in range(60)]
    assert second.returncode == 0


async def test_a_daemon_killed_again_and_again_loses_and_doubles_nothing(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=400)
    await cast.gateway.offer(held)
    for reached in (1, 40, 150, 300):
        worker = await cast.labapex_worker("run", "--once")
        await cast.gateway.until(lambda goal=reached: len(held.frames) >= goal or held.fin)  # type: ignore[misc]
        worker.kill()
        await worker.communicate()
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.losses(held) == [float(n) for n in range(800)]


async def test_a_daemon_that_is_told_to_stop_leaves_the_job_running_for_the_next(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=10, wait_at=5)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    worker.send_signal(signal.SIGTERM)
    err = await cast.ended(worker)
    assert worker.returncode == 0, err
    assert isinstance(journal.look(cast.home.lease(held.grant.lease)), journal.Alive)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.losses(held) == [float(n) for n in range(20)]


async def test_cut_connections_cost_nothing(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=300)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    for reached in (1, 100):
        await cast.gateway.until(lambda goal=reached: len(held.frames) >= goal or held.fin)  # type: ignore[misc]
        await cast.gateway.cut()
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.until(lambda: cast.gateway.connections >= 2)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.losses(held) == [float(n) for n in range(600)]


async def test_a_full_spool_holds_the_log_back_until_the_platform_is_there_again_or_has_given_the_lease_up(
    cast: Cast,
) -> None:
    await cast.enrol()
    cast.home.save(cast.home.load().model_copy(update={"spool_bytes": 1000}))
    mended, lost = cast.a_job(frames=20), cast.a_job(frames=20)
    mended.deaf = lost.deaf = True
    cast.gateway.books.waiting += [mended, lost]
    worker = await cast.labapex_worker("run")
    full = "the spool or the disk is full; its log is held back until there is room"
    await cast.logs(worker, str(mended.grant.lease), full)
    mended.deaf = False
    await cast.gateway.cut()
    await cast.gateway.until(lambda: mended.fin)
    assert cast.losses(mended) == [float(n) for n in range(40)]
    await cast.gateway.release(mended.grant.lease)

    await cast.logs(worker, str(lost.grant.lease), full)
    looked = journal.look(cast.home.lease(lost.grant.lease))
    assert isinstance(looked, journal.Alive)
    assert looked.pid is not None
    lost.over = True
    await cast.gateway.cut()
    await cast.logs(worker, str(lost.grant.lease), "over (the platform no longer knows the lease)")
    ready = cast.gateway.books.ready
    await cast.gateway.until(lambda: cast.gateway.books.ready > ready)  # once nothing of it is left
    assert not Path(f"/proc/{looked.pid}").exists()
    assert list((cast.home.path / "jobs").iterdir()) == []
    assert rows(cast.home) == []
    worker.send_signal(signal.SIGTERM)
    await cast.ended(worker)


async def test_a_download_that_breaks_off_goes_on_where_it_stopped(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1)
    cast.gateway.cut_download_at = 8192
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(worker)
    assert cast.gateway.ranges[0] is None
    assert cast.gateway.ranges[1] is not None


async def test_an_altered_executable_is_not_started(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1, altered=True)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    await cast.ended(worker)
    assert held.failed is not None
    assert "not what the platform signed" in held.failed
    assert held.key_request is None


async def test_a_job_whose_wheel_is_another_than_was_signed_is_not_started(cast: Cast, tmp_path: Path) -> None:
    await cast.enrol()
    lock, found = wheels.locked([wheels.make(tmp_path / "wheels", "alpha"), wheels.make(tmp_path / "wheels", "beta")])
    cast.gateway.wheels = {wheel.sha256: path.read_bytes() for wheel, path in found.items()}
    last = lock.wheels[-1]
    cast.gateway.wheels[last.sha256] = cast.gateway.wheels[last.sha256][:-1] + b"x"
    held = cast.a_job(packages=lock)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    assert held.failed is not None
    assert "packages could not be made ready: beta-1.0-py3-none-any.whl is not the file that was locked" in held.failed
    await cast.ended(worker)
    assert not cast.home.environments.exists(), "something of it was unpacked"


async def refused(cast: Cast, held: Held) -> tuple[str, str]:
    """Why a worker did not start a job, and its log."""
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    err = await cast.ended(worker)
    assert held.key_request is None, "it was started"
    return held.failed or "", err


async def test_an_executable_signed_by_a_key_that_was_revoked_is_not_started(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1)
    cast.authority.exchange("manifest")
    cast.gateway.trust = cast.authority.shown
    assert "which the platform's trust document does not name" in (await refused(cast, held))[0]


async def test_an_executable_signed_by_a_retired_key_is_not_started_and_one_by_its_successor_is(cast: Cast) -> None:
    await cast.enrol()
    late = cast.a_job(frames=1)
    cast.authority.exchange("manifest", old_until=1_000_000_000)
    good = cast.a_job(frames=1)
    cast.gateway.trust = cast.authority.shown
    assert "has expired" in (await refused(cast, late))[0]
    await cast.gateway.offer(good)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: good.fin)
    await cast.gateway.release(good.grant.lease)
    await cast.ended(worker)


async def test_a_platform_that_shows_an_older_trust_document_gets_nothing_started_by_it(cast: Cast) -> None:
    held, old = cast.a_job(frames=1), cast.authority.shown
    cast.authority.exchange("manifest")
    cast.gateway.trust = cast.authority.shown
    await cast.enrol()
    cast.gateway.trust = old
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run")
    told = "older ones are refused"  # before it asks for work, or when it fetched some
    await cast.gateway.until(lambda: held.failed or told in cast.gateway.books.paused)
    worker.terminate()
    assert told in await cast.ended(worker)
    assert held.key_request is None
    assert held.failed is None or "does not name" in held.failed


async def test_an_executable_with_an_older_runner_than_was_seen_is_not_started(cast: Cast) -> None:
    await cast.enrol()
    good, old = cast.a_job(frames=1, release="2.0"), cast.a_job(frames=1, release="1.9")
    await cast.gateway.offer(good)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: good.fin)
    await cast.gateway.release(good.grant.lease)
    await cast.ended(worker)
    assert "runner 1.9 is older than 2.0" in (await refused(cast, old))[0]


async def test_no_work_is_asked_for_while_nothing_could_be_started(cast: Cast) -> None:
    await cast.enrol()
    cast.authority.issue(ends=1_000_000_000)
    cast.gateway.trust = cast.authority.shown
    _, out, _ = await cast.said("check")
    assert "valid for" in out
    first = await cast.labapex_worker("run")  # learns of it, whatever it asked for before
    await cast.gateway.until(lambda: cast.gateway.books.heartbeats)
    first.terminate()
    await cast.ended(first)
    asked, before = cast.gateway.books.ready, len(cast.gateway.books.heartbeats)
    assert asked <= 1
    second = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(cast.gateway.books.heartbeats) > before)
    second.terminate()
    await cast.ended(second)
    assert cast.gateway.books.ready == 0, "the count begins anew with each connection"
    code, out, _ = await cast.said("check")
    assert code == 1
    assert "has expired" in out


async def test_an_update_waits_for_the_job_to_end_and_takes_over_before_the_next(cast: Cast) -> None:
    await cast.enrol()
    held, after = cast.a_job(frames=10, wait_at=5), cast.a_job(frames=3)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    cast.release_agent("9.0")
    await cast.gateway.cut()  # it looks with each connection
    await cast.gateway.until(lambda: cast.gateway.agents_sent)
    await cast.gateway.until(lambda: "9.0 of the agent" in cast.gateway.books.paused)
    assert not (cast.home.path / "agent" / "current").exists(), "not while a job is here"
    assert isinstance(journal.look(cast.home.lease(held.grant.lease)), journal.Alive)
    before = cast.gateway.connections
    await cast.gateway.release(held.grant.lease)
    await cast.gateway.until(lambda: cast.gateway.connections > before)
    assert (cast.home.path / "agent" / "current").readlink() == Path("9.0")
    await cast.gateway.offer(after)
    await cast.gateway.until(lambda: after.fin)
    await cast.gateway.release(after.grant.lease)
    assert not (cast.home.path / "agent" / "trying").exists()
    worker.terminate()
    assert "starting version 9.0 of the agent" in await cast.ended(worker)
    assert cast.losses(after) == [float(n) for n in range(6)]


async def test_a_version_that_does_not_come_up_is_gone_back_from_and_not_taken_again(cast: Cast) -> None:
    await cast.enrol()
    broken = "raise ImportError('a dependency is missing')\n"
    digest = cast.release_agent("9.0", files={"labapex_worker/daemon.py": broken})
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.connections == 2)
    held = cast.a_job(frames=2)
    await cast.gateway.offer(held)
    await cast.gateway.until(lambda: held.fin)
    await cast.gateway.release(held.grant.lease)
    worker.terminate()
    err = await cast.ended(worker)
    assert "version 9.0 of the agent did not come up: ImportError: a dependency is missing" in err
    assert "going on with the one before" in err
    assert cast.gateway.agents_sent == 1
    assert (cast.home.path / "agent" / "failed").read_text() == f"{digest}\n"


async def test_an_agent_that_nobody_who_counts_has_released_is_not_fetched(cast: Cast) -> None:
    await cast.enrol()
    cast.release_agent("9.0", authority=Authority())
    held = cast.a_job(frames=1)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run")
    await cast.gateway.until(lambda: held.fin)
    worker.terminate()
    assert "no update of the agent: signed by key" in await cast.ended(worker)
    assert cast.gateway.agents_sent == 0


async def test_a_platform_with_another_root_key_than_the_portal_shows_gets_no_worker(cast: Cast) -> None:
    wanted = fingerprint(cast.authority.public_root)
    cast.gateway.trust = Authority().shown
    code, _, err = await cast.said("enrol", "good", "--platform", cast.gateway.url, "--root-key", wanted)
    assert code == 2
    assert "nothing was enrolled" in err
    assert not cast.home.config.exists()
    assert cast.gateway.public_key == b"", "the code was not used up"
    cast.gateway.trust = cast.authority.shown
    code, _, err = await cast.said("enrol", "good", "--platform", cast.gateway.url, "--root-key", wanted)
    assert code == 0
    assert wanted in err
    _, out, _ = await cast.said("check")
    assert wanted in out


async def test_an_executable_that_fails_is_reported_after_its_log_with_its_last_words(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=3, exit=3)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    await cast.ended(worker)
    assert held.failed is not None
    assert "exit code 3: Traceback: it went wrong" in held.failed
    assert cast.losses(held) == [float(n) for n in range(6)]


async def test_a_job_that_is_released_while_it_runs_is_killed_and_deleted(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=10, wait_at=5)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 5)
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    assert worker.returncode == 0, err
    assert list((cast.home.path / "jobs").iterdir()) == []


async def test_a_state_that_is_a_link_to_a_file_of_the_host_is_not_handed_out(cast: Cast, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's own")
    await cast.enrol()
    held = cast.a_job(frames=1, states=2, challenge=(0, 1), link=secret)
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.states)
    await cast.gateway.release(held.grant.lease)
    err = await cast.ended(worker)
    assert held.states == {1: b"state 1 " * 1000}
    assert "states/0 cannot be read" in err


async def test_states_that_were_not_kept_are_made_anew_though_the_daemon_is_killed_meanwhile(cast: Cast) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1, states=3, keep=2, again="wait", challenge=(0, 1, 2))
    await cast.gateway.offer(held)
    first = await cast.labapex_worker("run", "--once")
    again = Folder(cast.home.lease(held.grant.lease)).again
    async with asyncio.timeout(60):
        # until it tells its pid, it may be the daemon itself that holds the lock
        while not (isinstance(seen := journal.look(again.path), journal.Alive) and seen.pid is not None):
            await asyncio.sleep(0.05)
    first.kill()
    await first.communicate()
    assert isinstance(journal.look(again.path), journal.Alive), "what makes states anew outlives the daemon"
    second = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: cast.gateway.connections == 2)
    (again.job / "go").touch()
    await cast.gateway.until(lambda: len(held.states) == 3)
    await cast.gateway.release(held.grant.lease)
    await cast.ended(second)
    assert held.states == {0: b"state 0 " * 1000, 1: b"made 1 again ", 2: b"state 2 " * 1000}
    assert list((cast.home.path / "jobs").iterdir()) == []


@pytest.mark.parametrize(
    ("again", "why"), [("broken", "came out otherwise"), ("dies", "the last time so: exit code 7")]
)
async def test_states_that_cannot_be_made_anew_are_reported_with_the_reason(cast: Cast, again: str, why: str) -> None:
    await cast.enrol()
    held = cast.a_job(frames=1, states=3, keep=2, again=again, challenge=(0, 1, 2))
    await cast.gateway.offer(held)
    worker = await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    await cast.ended(worker)
    assert held.failed is not None
    assert "could not be made anew" in held.failed
    assert why in held.failed


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


def with_driver(cast: Cast, library: Path, trace: str) -> None:
    """The host has an NVIDIA driver, which plays a trace."""
    (cast.folder / "trace").write_text(trace)
    cast.variables |= {"LD_LIBRARY_PATH": str(library.parent), "NVML_TRACE": str(cast.folder / "trace")}


async def test_a_gpu_that_is_lost_in_mid_run_gives_the_lease_back_with_this_reason(
    cast: Cast, nvml_library: Path
) -> None:
    await cast.enrol()
    with_driver(cast, nvml_library, traces.lost(after=2))
    held = cast.a_job(frames=9, wait_at=3)
    await cast.gateway.offer(held)
    await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: held.failed)
    assert "NVIDIA H200: GPU is lost" in (held.failed or "")
    await cast.gateway.until(lambda: cast.gateway.connections > 1)
    assert [device.kind for device in cast.gateway.devices if device.usable] == ["cpu"]


async def test_what_the_agent_sees_of_the_gpu_is_sent_beside_the_log(cast: Cast, nvml_library: Path) -> None:
    await cast.enrol()
    with_driver(cast, nvml_library, traces.resnet())
    held = cast.a_job(frames=9, wait_at=3)
    await cast.gateway.offer(held)
    await cast.labapex_worker("run", "--once")
    await cast.gateway.until(lambda: len(held.frames) == 3)
    assert [device.name for device in cast.gateway.devices] == ["Tesla V100-SXM2-16GB"]
    await cast.gateway.until(lambda: held.observations)
    assert {reading.device for reading in held.observations} == {traces.UUID}
    assert all(reading.job_utilisation == 0 for reading in held.observations), "no process of the trace is the job's"


async def test_a_daemon_computes_a_speed_trial_in_the_sandbox_and_shows_it(cast: Cast) -> None:
    await cast.enrol()
    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.books.ready)
    trial, seeds = uuid4(), (b"1" * 32, b"2" * 32)
    assert await cast.gateway.ask(TrialPrepare(trial=trial, size=128, rounds=3)) == TrialReady(trial=trial)
    answers = [await cast.gateway.ask(TrialBegin(trial=trial, seed=seed)) for seed in seeds]
    part = await cast.gateway.ask(TrialShow(trial=trial, number=1))
    assert isinstance(part, TrialPart)
    expected = [chain(trial, seed, 128, 3) for seed in seeds]
    assert answers == [TrialAnswer(trial=trial, digest=hashlib.sha256(each).digest()) for each in expected]
    assert part.data == expected[1]


async def test_a_host_without_torch_says_that_its_speed_cannot_be_measured(cast: Cast, tmp_path: Path) -> None:
    await cast.enrol()
    config = json.loads(cast.home.config.read_text())
    cast.home.config.write_text(json.dumps({**config, "read_only": [], "site_packages": [str(tmp_path)]}))

    await cast.labapex_worker("run")
    await cast.gateway.until(lambda: cast.gateway.books.ready)
    said = await cast.gateway.ask(TrialPrepare(trial=uuid4(), size=128, rounds=3))
    assert isinstance(said, TrialReady)
    assert said.problem == "the speed of this host could not be measured: ModuleNotFoundError: No module named 'torch'"

    torch, found = wheels.supplied(wheels.a_torch(tmp_path, text="raise ImportError('the platform has sent this one')"))
    packages.store(cast.home, cast.home.load()).make(torch.packages, found)
    cast.home.torch.write_bytes(canonical(torch))  # as a job leaves it
    said = await cast.gateway.ask(TrialPrepare(trial=uuid4(), size=128, rounds=3))
    assert isinstance(said, TrialReady)
    assert said.problem.endswith("ImportError: the platform has sent this one")
