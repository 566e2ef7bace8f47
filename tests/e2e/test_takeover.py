"""A host is lost in the middle of an epoch for good: another one goes on with its run, and the proof is of one piece."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack, Worker

from labapex.protocol.states import JobState

pytestmark = pytest.mark.e2e

PAUSE = 0.3  # seconds an iteration
EVERY = 3  # so that leaves are due at 0, 3, 6, 9, 10, 12, 15 ..: about one in 0.75 seconds
HELD = 6  # the leaf at step 15, in the middle of the second epoch; the host hands in each second one


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform that has its hosts hand in a state about each 1.2 seconds."""
    folder = tmp_path_factory.mktemp("takeover")
    with running(request, folder, Stack(folder, settings={"LABAPEX_HANDOVER_SECONDS": "1.2"})) as started:
        yield started


def submit(stack: Stack, folder: Path) -> UUID:
    return stack.submit(scripts.job(folder, pause=PAUSE, checkpoint_every=EVERY, audit_segments=4))


def lose(stack: Stack, worker: Worker, job: UUID) -> UUID:
    """Let a host train until the platform has state `HELD` of it and some iterations more, and end it with all its files."""
    stack.until_trained(job, 16)
    (lease,) = worker.leases()
    state = stack.folder / "platform" / "leases" / str(lease) / "states" / f"{HELD}.safetensors"
    stack.until("the state was handed in", state.exists)
    assert stack.job(job).state is JobState.RUNNING
    worker.end()
    shutil.rmtree(worker.home)
    (worker.home / "jobs").mkdir(parents=True)  # where the test's end looks for what still runs
    return lease


def verified(stack: Stack, job: UUID) -> bool:
    """Wait for a job's end: two trainings, a look at the first, and a replay or two of all."""
    stack.until("the job has ended", lambda: stack.job(job).state.ended, patience=600)
    return stack.job(job).state is JobState.VERIFIED


def test_a_run_goes_on_elsewhere_without_a_lost_or_doubled_step_and_both_hosts_are_paid(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.worker("lost") as worker:
        job = submit(stack, tmp_path / "job")
        lost = lose(stack, worker, job)
    before = stack.client.events(job).losses
    with stack.worker("second"):
        assert verified(stack, job)

    events = stack.client.events(job)
    (handover,) = events.handovers
    assert (events.first, len(events.losses)) == (0, scripts.ITERATIONS)
    assert (handover.before, handover.after) == ("lost", "second")
    assert 15 <= handover.iteration <= len(before)
    assert events.losses[: len(before)] == before  # the same run: what is made again is the same, bit for bit

    verdict = stack.client.checked_verdict(job).verdict
    assert (verdict.verdict, verdict.loss_logs, verdict.replay_max_error) == ("verified", scripts.ITERATIONS, 0.0)
    assert verdict.lease != lost
    receipt = stack.client.receipt(job)
    assert [(payment.worker, payment.epochs) for payment in receipt.payments] == [("lost", 1), ("second", 2)]
    assert sum(payment.amount for payment in receipt.payments) == receipt.paid
    assert receipt.paid + receipt.refunded == receipt.held

    proof = tmp_path / "proof"
    assert stack.cli("pull", str(job), "--proof", proof).code == 0
    said = stack.cli("verify", proof, "--data", tmp_path / "job" / "data", "--json")
    assert said.code == 0, said.err
    assert said.summary["verdict"] == "verified"


def test_what_a_lost_host_lied_about_is_found_before_anyone_goes_on_with_it(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("liar", cheat="forged-loss") as worker:
        job = submit(stack, tmp_path / "lied")
        lost = lose(stack, worker, job)
    with stack.worker("honest"):
        assert verified(stack, job)
    assert stack.client.events(job).handovers == ()
    verdict = stack.client.checked_verdict(job).verdict
    assert (verdict.loss_logs, verdict.replay_max_error) == (scripts.ITERATIONS, 0.0)
    assert verdict.lease != lost
    assert [payment.worker for payment in stack.client.receipt(job).payments] == ["honest"]
