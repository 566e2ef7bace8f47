"""A real daemon process against a gateway on this machine: real socket, real SQLite, real sandbox, real kill -9."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from tests.labapex_worker.cast import Cast, rows

from labapex import sandbox
from labapex_worker import journal
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
    await cast.logs(worker, str(lost.grant.lease), "deleted")
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
