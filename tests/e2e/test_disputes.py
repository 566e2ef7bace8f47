"""Verdicts contested through real processes: the frozen runner trains the jobs again, in the sandbox, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from tests.e2e import scripts
from tests.e2e.conftest import running
from tests.e2e.stack import Stack

from labapex.client import check_ruling
from labapex.protocol.ruling import DisputeView, Outcome, Ruling
from labapex.protocol.states import JobState

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform that takes a turn for every second of training or so; its host's owner can put in a stake."""
    folder = tmp_path_factory.mktemp("disputes")
    settings = {"LABAPEX_DISPUTE_TURN_SECONDS": "1", "LABAPEX_OPENING_SECONDS": "20"}
    with running(request, folder, Stack(folder, settings=settings)) as started:
        started.manage("topup", "landlord", "10")
        yield started


def ruled(stack: Stack, job: UUID) -> tuple[DisputeView, Ruling]:
    def look() -> DisputeView | None:
        found = next(stack.client.disputes(job))
        return found if found.ruling is not None else None

    view = stack.until("the dispute is ruled", look, patience=600)
    assert view.ruling is not None
    return view, check_ruling(view.ruling, stack.client.verdict_key().public_key)


def test_honest_work_stands_whoever_doubts_it(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("honest", once=True):
        job = stack.submit(scripts.job(tmp_path / "honest", checkpoint_every=3, audit_segments=1))
        stack.until("it is verified", lambda: stack.job(job).state is JobState.VERIFIED, patience=600)
    before = stack.client.me().available
    opened = stack.cli("dispute", str(job), "--reason", "I do not believe it")
    assert opened.code == 0, opened.err
    _, ruling = ruled(stack, job)
    assert (ruling.outcome, ruling.false, ruling.segments_executed) == (Outcome.UPHELD, None, ruling.segments)
    assert {rule.result for rule in ruling.rules if rule.weight == "decides"} <= {"pass", "not-applicable"}
    assert before is not None
    assert stack.client.me().available == before - ruling.charged
    shown = stack.cli("dispute", str(job))
    assert "The ruling's signature is good" in shown.err


def test_a_cheat_who_contests_is_found_out_by_two_segments(stack: Stack, tmp_path: Path) -> None:
    job = stack.submit(scripts.job(tmp_path / "cheat", checkpoint_every=3, audit_segments=1000))
    stack.until_state(job, "queued")
    with stack.worker("liar", cheat="skip-epochs", once=True):
        stack.until("it is rejected", lambda: stack.job(job).state is JobState.REJECTED, patience=600)
    had = stack.owner.me().available
    assert had is not None
    stack.owner.dispute(job, "I trained all of it")
    view, ruling = ruled(stack, job)
    assert (ruling.outcome, ruling.segments_executed) == (Outcome.UPHELD, 2)
    assert ruling.false is not None
    assert ruling.false.recomputed not in (None, ruling.false.committed)
    assert stack.owner.me().available == had - ruling.charged
    assert view.again is not None
    again = view.again.split(" && ")[1].split()
    assert stack.cli("pull", str(job), "--proof", tmp_path / "proof").code == 0
    data = tmp_path / "cheat" / "data"
    own = ["--data", data] if data.exists() else []
    said = stack.cli(
        "replay", tmp_path / "proof", *again[3:], *own, "--json"
    )  # the printed command, as the client has it
    assert said.code == 0, said.err
    assert '"digest_equal": false' in said.out


def test_a_host_that_was_cut_off_is_paid_after_all(stack: Stack, tmp_path: Path) -> None:
    with stack.worker("cut-off") as worker:
        job = stack.submit(
            scripts.job(tmp_path / "cut", checkpoint_every=3, audit_segments=1, takeover=False, pause=0.2)
        )
        stack.until_trained(job, scripts.ITERATIONS - 2)
        stack.until("all is committed", lambda: stack.job(job).state is not JobState.RUNNING, patience=120)
        worker.kill()
        stack.until("it is judged", lambda: stack.job(job).state.ended, patience=600)
    assert stack.job(job).state is JobState.REJECTED
    had = stack.owner.me().available
    stack.owner.dispute(job, "the line was cut")
    _, ruling = ruled(stack, job)
    assert (ruling.outcome, ruling.segments_executed) == (Outcome.REVERSED, ruling.segments)
    assert stack.job(job).state is JobState.VERIFIED
    assert had is not None
    paid = sum(each.amount for each in ruling.moved if each.payee == "landlord")
    assert paid > 0
    assert stack.owner.me().available == had + paid - ruling.charged
    assert stack.cli("pull", str(job), "-o", tmp_path / "result").code == 0
