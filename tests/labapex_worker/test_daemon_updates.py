"""A daemon that becomes a newer version of itself, and one that goes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.authority import Authority
from tests.labapex_worker.cast import Cast

from labapex import sandbox
from labapex_worker import journal

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")


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
