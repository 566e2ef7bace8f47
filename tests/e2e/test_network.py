"""The line between host and platform is cut, falls silent, or one end is away, for far longer than a heartbeat.

A worker may be silent for two minutes here, as it may in production; a heartbeat is due each second, so that "lost contact" shows
soon. What is waited for are conditions, never times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack, Worker
from tests.e2e.test_recovery import assert_exact, submit
from tests.e2e.wire import State, Wire

from labapex_worker.spool import Lease, Spool

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform that takes nobody's lease for a while."""
    folder = tmp_path_factory.mktemp("network")
    with running(request, folder, Stack(folder, settings={"LABAPEX_LEASE_SECONDS": "120"})) as started:
        yield started


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    with Wire(stack.port).strung() as strung:
        yield strung


def held(worker: Worker, lease: UUID) -> Lease:
    """What the host itself knows of a lease."""
    spool = Spool(worker.home / "state.sqlite3", quota=1, read_only=True)
    try:
        found = spool.lease(lease)
    finally:
        spool.close()
    assert found is not None
    return found


@pytest.mark.parametrize("how", [State.CUT, State.SILENT], ids=["cut", "silent"])
def test_training_goes_on_without_the_line_and_every_loss_arrives_once_it_is_back(
    stack: Stack, wire: Wire, tmp_path: Path, how: State
) -> None:
    with stack.worker(f"far-{how.value}", through=wire.url) as worker:
        job, follower = submit(stack, tmp_path / how.value)
        stack.until_trained(job, 5)
        (lease,) = worker.leases()
        wire.set(how)
        stack.until("the platform misses the worker", lambda: stack.job(job).lost_contact)
        stack.until("training is complete all the same", lambda: held(worker, lease).fin)
        lost = stack.job(job)
        assert lost.state.value == "running", "lost contact is not failure"
        assert lost.progress.iterations < scripts.ITERATIONS
        wire.set(State.WHOLE)
        assert assert_exact(stack, job, follower).lease == lease
        assert not stack.job(job).lost_contact


def test_a_connection_that_is_dead_without_either_end_being_told_is_replaced(
    stack: Stack, wire: Wire, tmp_path: Path
) -> None:
    with stack.worker("half-open", through=wire.url) as worker:
        job, follower = submit(stack, tmp_path / "half-open")
        stack.until_trained(job, 5)
        (lease,) = worker.leases()
        wire.forget()
        assert assert_exact(stack, job, follower).lease == lease


def test_a_platform_that_is_away_for_the_rest_of_the_run_neither_stops_training_nor_loses_any_of_it(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.worker("alone") as worker:
        job, follower = submit(stack, tmp_path / "away")
        stack.until_trained(job, 5)
        (lease,) = worker.leases()
        stack.platform.kill()
        stack.until("the log is complete on the host", lambda: held(worker, lease).fin)
        assert held(worker, lease).base < held(worker, lease).seq, "there is something left to be delivered"
        stack.serve()
        assert assert_exact(stack, job, follower).lease == lease
