"""The client is gone, or stops her job: whoever worked is paid for what holds, through real processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack

from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import Receipt

pytestmark = pytest.mark.e2e

PAUSE = 0.3  # seconds an iteration


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform that has its hosts hand in a state about each 1.2 seconds."""
    folder = tmp_path_factory.mktemp("stop")
    with running(request, folder, Stack(folder, settings={"LABAPEX_HANDOVER_SECONDS": "1.2"})) as started:
        yield started


def submit(stack: Stack, folder: Path) -> UUID:
    return stack.submit(scripts.job(folder, pause=PAUSE, checkpoint_every=3, audit_segments=4))


def balanced(stack: Stack, job: UUID) -> Receipt:
    """Receipt and ledger say the same to the unit, on both sides, and the cap was not passed."""
    receipt = stack.client.receipt(job)
    assert receipt.paid + receipt.refunded == receipt.held
    assert receipt.paid <= stack.job(job).budget
    assert sum(payment.amount for payment in receipt.payments) == receipt.paid
    statement = stack.client.statement()
    own = [entry for entry in statement.results if entry.job == job and entry.status == "posted"]
    assert -sum(entry.amount for entry in own) == receipt.paid
    earned = [entry.amount for entry in stack.owner.statement().results if entry.job == job]
    assert sum(earned) == receipt.paid
    return receipt


def ended(stack: Stack, job: UUID) -> JobState:
    stack.until("the job has ended", lambda: stack.job(job).state.ended, patience=600)
    return stack.job(job).state


def test_a_client_who_is_gone_pays_for_every_verified_epoch(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("faithful"):
        follows = stack.begin("run", scripts.job(tmp_path / "gone", audit_segments=4), "--yes", "--json")
        job = stack.until("the job is there", lambda: next(iter(stack.client.jobs().results), None)).id
        stack.until("it trains", lambda: stack.job(job).progress.iterations)
        follows.end()  # kill -9, and nobody ever asks again
        assert ended(stack, job) is JobState.VERIFIED
    receipt = balanced(stack, job)
    assert (receipt.verified_epochs, receipt.paid) == (scripts.EPOCHS, scripts.EPOCHS * receipt.price_per_epoch)


def test_a_stopped_job_costs_what_was_complete_at_that_instant_and_no_more(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("stopped"):
        job = submit(stack, tmp_path / "job")
        stack.until_trained(job, 13)  # in the second of three epochs
        said = stack.cli("stop", str(job))
        assert said.code == 0, said.err
        seen = stack.job(job)
        assert seen.state in (JobState.CHALLENGED, JobState.VERIFYING, JobState.SETTLING, JobState.CANCELLED)
        assert seen.progress.iterations == 10
        assert ended(stack, job) is JobState.CANCELLED
    view, verdict = stack.job(job), stack.client.checked_verdict(job).verdict
    assert view.fault is Fault.CLIENT
    assert "1 of 3 epochs" in view.reason
    assert (verdict.verdict, verdict.verified_epochs, verdict.loss_logs) == ("verified", 1, 10)
    assert verdict.replay_max_error == 0.0
    receipt = balanced(stack, job)
    assert (receipt.verified_epochs, receipt.paid) == (1, receipt.price_per_epoch)
    assert view.cost == receipt.paid == seen.cost

    weights = tmp_path / "weights"
    assert stack.cli("pull", str(job), "--output", weights).code == 0
    proof = tmp_path / "proof"
    assert stack.cli("pull", str(job), "--proof", proof).code == 0
    said = stack.cli("verify", proof, "--data", tmp_path / "job" / "data", "--json")
    assert said.code == 0, said.err
    assert said.summary["verdict"] == "verified"


def test_a_stopped_job_is_resumed_on_another_host_and_no_epoch_is_paid_twice(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("begins"):
        job = submit(stack, tmp_path / "paused")
        stack.until_trained(job, 13)
        assert stack.cli("stop", str(job)).code == 0
        assert ended(stack, job) is JobState.CANCELLED
    before = stack.client.events(job).losses
    assert len(before) == 10
    said = stack.cli("resume", str(job), "--json")
    assert said.code == 0, said.err
    with stack.worker("goes-on"):
        assert ended(stack, job) is JobState.VERIFIED, stack.job(job).reason
    events = stack.client.events(job)
    assert len(events.losses) == scripts.ITERATIONS
    assert events.losses[:10] == before
    verdict = stack.client.checked_verdict(job).verdict
    assert (verdict.verified_epochs, verdict.loss_logs, verdict.replay_max_error) == (3, scripts.ITERATIONS, 0.0)
    receipt = balanced(stack, job)
    assert [(payment.worker, payment.epochs) for payment in receipt.payments] == [("begins", 1), ("goes-on", 2)]
    proof = tmp_path / "proof"
    assert stack.cli("pull", str(job), "--proof", proof).code == 0
    said = stack.cli("verify", proof, "--data", tmp_path / "paused" / "data", "--json")
    assert said.code == 0, said.err
    assert stack.cli("pull", str(job), "--output", tmp_path / "weights").code == 0
    assert (tmp_path / "weights" / "certificate.json").exists()


def test_a_host_that_is_lost_is_paid_for_what_it_handed_in_when_its_job_is_stopped(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.worker("lost") as worker:
        job = submit(stack, tmp_path / "lost-job")
        stack.until_trained(job, 16)
        (lease,) = worker.leases()
        states = stack.folder / "platform" / "leases" / str(lease) / "states"
        stack.until("states were handed in", lambda: any(int(path.stem) >= 4 for path in states.glob("[0-9]*")))
        worker.end()
        shutil.rmtree(worker.home)
        (worker.home / "jobs").mkdir(parents=True)
    stack.until_state(job, "resuming", "queued")
    assert stack.cli("stop", str(job)).code == 0
    assert ended(stack, job) is JobState.CANCELLED
    receipt = balanced(stack, job)
    assert [(payment.worker, payment.epochs) for payment in receipt.payments] == [("lost", 1)], stack.job(job).reason
    assert stack.client.checked_verdict(job).verdict.verified_epochs == 1
