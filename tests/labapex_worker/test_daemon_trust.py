"""What a daemon starts, and what not: by whose signatures, and of which age."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import wheels
from tests.labapex.authority import Authority
from tests.labapex_worker.cast import Cast
from tests.labapex_worker.platform_double import Held

from labapex import sandbox
from labapex.trust import fingerprint

missing = sandbox.available()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no sandbox can be had: {missing}")


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
