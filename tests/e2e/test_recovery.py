"""What a machine does to programs: each of them is killed or stopped in the middle of a job, and the job ends exact."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from tests.e2e import scripts
from tests.e2e.stack import Command, Stack

from labapex.protocol.verdict import Verdict

pytestmark = pytest.mark.e2e

PAUSE = 0.1  # seconds an iteration: long enough to be hit in the middle of it


def submit(stack: Stack, folder: Path) -> tuple[UUID, Command]:
    """A job, and somebody who follows it to its end whatever happens."""
    job = stack.submit(scripts.job(folder, pause=PAUSE, audit_segments=2))
    return job, stack.begin("logs", "-f", str(job), "--json")


def assert_exact(stack: Stack, job: UUID, follower: Command) -> Verdict:
    """The job was verified with exactly the losses that are due, and the follower was told so; the verdict."""
    said = follower.wait()
    assert said.code == 0, said.err + stack.logs()
    assert said.summary["loss_logs"] == scripts.ITERATIONS
    assert said.summary["replay_max_error"] == 0.0
    assert said.summary["paid"] + said.summary["refunded"] == 10_000_000
    events = stack.client.events(job)
    assert (events.first, len(events.losses)) == (0, scripts.ITERATIONS)
    return stack.client.checked_verdict(job).verdict


def test_a_killed_daemon_takes_its_running_job_up_again(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("restarted") as worker:
        job, follower = submit(stack, tmp_path / "daemon")
        stack.until_trained(job, 5)
        (lease,) = worker.leases()
        worker.kill()
        worker.start()
        assert assert_exact(stack, job, follower).lease == lease


def test_a_platform_that_is_killed_while_losses_stream_and_again_while_it_verifies_loses_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.worker("patient") as worker:
        job, follower = submit(stack, tmp_path / "platform")
        stack.until_trained(job, 5)
        (lease,) = worker.leases()
        stack.platform.kill()
        stack.serve()
        stack.until_state(job, "verifying")
        stack.platform.kill()
        stack.serve()
        assert assert_exact(stack, job, follower).lease == lease


def test_a_killed_executable_costs_its_lease_and_the_curve_starts_anew(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("twice") as worker:
        job, follower = submit(stack, tmp_path / "executable")
        stack.until_trained(job, 5)
        (lease,) = worker.leases()
        cursor = stack.client.events(job).cursor
        worker.kill_executable(lease)
        assert assert_exact(stack, job, follower).lease != lease
        assert stack.client.events(job, cursor).restarted
        stack.until("the worker forgets both leases", lambda: not worker.leases())


def test_a_silent_hosts_job_goes_to_another_one(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("silent") as lost:
        job, follower = submit(stack, tmp_path / "silence")
        stack.until_trained(job, 5)
        (lease,) = lost.leases()
        lost.stop()
        stack.until_state(job, "queued")
        with stack.worker("second"):
            assert assert_exact(stack, job, follower).lease != lease
        assert stack.job(job).worker == "second"
        lost.resume()  # it wakes up, hears that its lease is over, and keeps nothing of the job
        stack.until("the host that was away forgets the lease", lambda: not lost.leases())
