from __future__ import annotations

import io
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from tests.labapex_server.gateway.stage import Host, Run, a_run, a_state, queued_job
from tests.labapex_server.scenes import finished, opened, stand_in, submitted

from labapex.errors import Tampered
from labapex.protocol.canonical import canonical
from labapex.protocol.states import Fault, JobState, LeaseState
from labapex.protocol.verdict import Verdict
from labapex.sealing import verify as verify_signature
from labapex_server.accounts.models import User
from labapex_server.gateway import books
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger.models import Transfer
from labapex_server.lib import childprocess, clock, keys
from labapex_server.lib.errors import Conflict, Missing, NotFinishedYet, Refused
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import services as telemetry
from labapex_server.telemetry.models import Frame, Log
from labapex_server.verification import challenges, evidence
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge, OpenedState, VerdictRecord


def nothing() -> None:
    """A beat that is always fine."""


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def preflight(owner: User, script: str = "fine", **spec: Any) -> Job:
    job = submitted(owner, script, **spec)
    verification.preflight(job, beat=nothing)
    return Job.objects.get(pk=job.pk)


# -- preflight ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_script_that_runs_has_its_budget_held_and_goes_on(researcher: User) -> None:
    job = preflight(researcher, data="data")
    assert job.state == JobState.PACKAGING
    assert job.facts is not None
    assert job.facts["iterations_per_epoch"] == 7
    assert "console" not in (job.preflight or {})
    assert ledger.balance(ledger.account_of(researcher)).held == job.budget
    assert jobs.view(job).progress.total == 14


@pytest.mark.django_db
def test_a_script_that_takes_more_than_its_job_asks_for_is_refused_before_it_costs_anything(researcher: User) -> None:
    refused = preflight(researcher, f"hoard: {600 << 20}", limits={"memory": "512M"})
    assert (refused.state, refused.fault) == (JobState.REFUSED, Fault.CLIENT)
    words = (
        r"the job used [56]\d\d MiB of memory; 512 MiB are its limit: ask for more in labapex.yaml \(limits.memory\)"
    )
    assert re.fullmatch(words, refused.reason)  # it is seen wherever it is on its way to the 600


@pytest.mark.django_db
def test_a_job_that_asks_for_more_than_could_be_tried_here_is_not_accepted(researcher: User) -> None:
    with pytest.raises(Refused, match=r"limits\.memory: .* ask for 17179869184 at most"):
        submitted(researcher, limits={"memory": "17G"})


@pytest.mark.django_db
def test_an_unproven_start_goes_on_unless_its_client_demands_another(researcher: User) -> None:
    assert preflight(researcher, "stolen: fc.weight").state == JobState.PACKAGING
    refused = preflight(researcher, "stolen: fc.weight", require_proven_start=True)
    assert refused.state == JobState.REFUSED
    assert (
        "1 of 4 parameter tensors neither follow from the seed nor come from a certified model: fc.weight"
        in refused.reason
    )
    assert "start_from" in refused.reason
    assert preflight(researcher, require_proven_start=True).state == JobState.PACKAGING


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("problem: NameError: name 'modle' is not defined", "NameError: name 'modle' is not defined"),
        ("crash", "exit code 7"),
        ("link", "left no usable report"),
        ("slow: 100000", "budget too small"),
        ("slow: Infinity", "left no usable report|could not be measured"),
        ("slow: -1", "left no usable report"),
        ("long: 1000000000", "raise it"),
    ],
)
def test_a_script_that_may_not_run_is_refused_with_the_reason_and_costs_nothing(
    researcher: User, script: str, reason: str
) -> None:
    job = preflight(researcher, script)
    assert job.state == JobState.REFUSED
    assert Fault(job.fault) is Fault.CLIENT
    assert re.search(reason, job.reason)
    assert not Transfer.objects.filter(job=job.pk).exists()


@pytest.mark.django_db
def test_a_declared_number_of_iterations_must_be_the_scripts(researcher: User) -> None:
    assert preflight(researcher, iterations_per_epoch=7).state == JobState.PACKAGING
    refused = preflight(researcher, iterations_per_epoch=8)
    assert refused.reason == "iterations_per_epoch: 8 was declared, and the script does 7; correct it"


@pytest.mark.django_db
def test_credit_that_was_spent_meanwhile_refuses_the_job(researcher: User) -> None:
    jobs_ = [submitted(researcher, budget="60") for _ in range(2)]
    for job in jobs_:
        verification.preflight(job, beat=nothing)
    assert [Job.objects.get(pk=job.pk).state for job in jobs_] == [JobState.PACKAGING, JobState.REFUSED]
    assert ledger.balance(ledger.account_of(researcher)).held == 60_000_000


@pytest.mark.django_db
def test_a_job_stopped_during_its_preflight_holds_nothing(researcher: User) -> None:
    job = submitted(researcher)
    verification.stop(Job.objects.get(pk=job.pk))
    verification.preflight(job, beat=nothing)
    assert Job.objects.get(pk=job.pk).state == JobState.CANCELLED
    assert ledger.balance(ledger.account_of(researcher)).held == 0


# -- challenge and openings --------------------------------------------------------------------------------------------


def test_a_challenge_is_drawn_once_and_only_after_the_last_commitment(run: Run) -> None:
    with pytest.raises(Conflict):
        verification.challenge(run.lease)
    job = finished(run)
    lease = verification.finished_lease(job)
    first = verification.challenge(lease)
    assert verification.challenge(lease) == first
    last = len(lease.terms.leaf_steps()) - 1
    assert {0, last} <= set(first.indices)
    assert {0, last - 1} <= set(first.segments)


def test_every_state_that_was_asked_for_must_come_before_the_job_goes_on(run: Run) -> None:
    lease = verification.finished_lease(finished(run))
    first, *others = verification.challenge(lease).indices
    for index in others:
        assert verification.accept_state(lease, index, io.BytesIO(a_state()))
    assert Job.objects.get().state == JobState.CHALLENGED
    assert verification.accept_state(lease, first, io.BytesIO(a_state()))
    assert Job.objects.get().state == JobState.VERIFYING
    with pytest.raises(Refused):
        verification.accept_state(lease, max(others) + 1, io.BytesIO(a_state()))


def test_a_state_of_another_size_or_shape_is_refused_and_forgotten(run: Run, home: Path) -> None:
    lease = verification.finished_lease(finished(run))
    index = verification.challenge(lease).indices[0]
    for wrong in (a_state(129), a_state(127), b"", bytes(128), a_state()[:-1] + b"ab"):
        with pytest.raises(Refused):
            verification.accept_state(lease, index, io.BytesIO(wrong))
    assert not OpenedState.objects.exists()
    assert not list((home / "leases" / str(lease.pk) / "states").iterdir())


def test_a_state_that_was_not_asked_for_or_comes_late_is_refused(run: Run) -> None:
    lease = verification.finished_lease(finished(run))
    drawn = verification.challenge(lease)
    with pytest.raises(Missing):
        verification.accept_state(lease, 10_000, io.BytesIO(a_state()))
    Challenge.objects.update(deadline=clock.now() - timedelta(seconds=1))
    with pytest.raises(Conflict):
        verification.accept_state(lease, drawn.indices[0], io.BytesIO(a_state()))


def test_what_is_not_opened_in_time_is_rejected_and_nothing_is_paid(run: Run) -> None:
    lease = verification.finished_lease(finished(run))
    verification.challenge(lease)
    assert verification.late(clock.now()) == []
    later = clock.now() + timedelta(hours=1)
    assert verification.late(later) == [lease]
    verification.reject_late(lease)
    job = Job.objects.get()
    assert job.state == JobState.SETTLING
    verdict = verification.signed(job).verdict
    assert (verdict.verdict, verdict.deciding_rule, verdict.fault) == ("rejected", "opening", Fault.WORKER)
    assert verdict.weights is None


def test_states_that_the_host_does_not_keep_have_the_time_to_be_made_anew(
    rig: Host, researcher: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.LABAPEX, "kept_states_gb", 3e-7)  # three states
    lease = verification.finished_lease(finished(a_run(queued_job(researcher), rig)))
    Job.objects.update(preflight={"iteration_seconds": 3.0})
    lease.job.refresh_from_db()
    drawn, terms = verification.challenge(lease), lease.terms
    assert terms.keep_every > 1
    unkept = set(drawn.indices) - terms.kept_leaves()
    assert unkept
    usual = timedelta(seconds=settings.LABAPEX.opening_seconds)
    more = timedelta(seconds=3.0 * len(unkept) * terms.checkpoint_every * (terms.keep_every - 1))
    assert usual + more <= drawn.deadline - drawn.issued_at < usual + more + timedelta(minutes=1)


def test_a_worker_that_cannot_make_a_state_anew_says_why_and_is_rejected(run: Run) -> None:
    lease = verification.finished_lease(finished(run))
    verification.challenge(lease)
    books.fail(lease.worker, lease.pk, "state 3 came out as another one")
    job = Job.objects.get()
    assert job.state == JobState.SETTLING
    verdict = verification.signed(job).verdict
    assert (verdict.verdict, verdict.deciding_rule) == ("rejected", "opening")
    assert "state 3 came out as another one" in verdict.reason


# -- verdicts ----------------------------------------------------------------------------------------------------------


def paid_run(rig: Host, researcher: User, script: bytes = b"fine") -> Run:
    """A run whose job has its budget held, as after a real preflight."""
    job = queued_job(researcher, script=script)
    held = ledger.hold(ledger.account_of(researcher), amount=job.budget, job=job.pk, memo="")
    environment = {"python": "3.11", "torch": "2.13", "device": "cpu: test", "capability": "AVX2", "threads": 1}
    Job.objects.filter(pk=job.pk).update(hold=held, preflight={"environment": environment})
    return a_run(Job.objects.get(pk=job.pk), rig)


def test_a_verdict_is_signed_and_names_every_rule(rig: Host, researcher: User) -> None:
    run = paid_run(rig, researcher)
    finished(run)
    job = opened(run)
    verification.verify(verification.finished_lease(job), beat=nothing)
    job = Job.objects.get()
    assert job.state == JobState.SETTLING
    signed = verification.signed(job)
    verify_signature(keys.verdict_public_key(), canonical(signed.verdict), signed.signature)
    forged = signed.verdict.model_copy(update={"verdict": "verified", "deciding_rule": None, "reason": "paid"})
    with pytest.raises(Tampered):
        verify_signature(keys.verdict_public_key(), canonical(forged), signed.signature)
    rules = {rule.rule for rule in signed.verdict.rules}
    assert {"log-count", "log-chain", "pev", "point-loss", "initialisation", "batch-order", "replay", "vmo"} <= rules
    assert signed.verdict.loss_logs == 14
    assert signed.verdict.cost.opened_states == len(Challenge.objects.get().indices)
    assert signed.verdict.cost.all_checkpoint_bytes == run.executable.state_size * len(run.lease.terms.leaf_steps())


def test_whoever_committed_to_a_state_first_is_not_the_one_who_copied_it(rig: Host, researcher: User) -> None:
    first = paid_run(rig, researcher)
    finished(first)
    second = paid_run(rig, researcher)
    finished(second)
    mine, copied = Log.objects.get(lease=first.lease), Log.objects.get(lease=second.lease)
    mine.leaves.update(state="0" * 64, received_at=1.0)
    mine.leaves.filter(index=2).update(state="a" * 64)
    copied.leaves.update(received_at=2.0)
    copied.leaves.filter(index=3).update(state="a" * 64)
    assert evidence.read(first.lease).known == frozenset()
    assert evidence.read(second.lease).known == {"a" * 64}


def test_an_end_states_money_follows_the_verdict(rig: Host, researcher: User, host: User) -> None:
    run = paid_run(rig, researcher)
    job = finished(run)
    lease = verification.finished_lease(job)
    verdict = verdict_for(lease, "verified")
    assert verification.issue(lease, verdict)
    assert not verification.issue(lease, verdict_for(lease, "rejected"))  # the first one stands
    with pytest.raises(NotFinishedYet):
        verification.weights(Job.objects.get())
    assert marketplace.settle(lease, verdict)
    assert not marketplace.settle(lease, verdict)
    due = lease.price_per_epoch * 2
    assert ledger.balance(ledger.account_of(host)).available == due
    assert ledger.balance(ledger.account_of(researcher)) == ledger.Balance(100_000_000 - due, 0)
    view = jobs.view(Job.objects.get())
    assert (view.state, view.paid, view.refunded, view.cost) == (JobState.VERIFIED, due, view.budget - due, due)
    lease.refresh_from_db()
    assert lease.state == LeaseState.SETTLED


def test_a_proven_cheat_forfeits_the_whole_job(rig: Host, researcher: User, host: User) -> None:
    run = paid_run(rig, researcher)
    lease = verification.finished_lease(finished(run))
    verification.issue(lease, verdict_for(lease, "rejected"))
    assert marketplace.settle(lease, verification.signed(Job.objects.get()).verdict)
    assert ledger.balance(ledger.account_of(host)).available == 0
    assert ledger.balance(ledger.account_of(researcher)) == ledger.Balance(100_000_000, 0)
    job = Job.objects.get()
    assert (job.state, job.fault) == (JobState.REJECTED, Fault.WORKER)
    with pytest.raises(Refused, match="rejected"):
        verification.weights(job)


def test_a_verifier_that_dies_is_no_evidence_against_the_worker(rig: Host, researcher: User) -> None:
    run = paid_run(rig, researcher, script=b"crash")
    finished(run)
    job = opened(run)
    with pytest.raises(childprocess.ChildFailed):
        verification.verify(verification.finished_lease(job), beat=nothing)
    assert Job.objects.get().state == JobState.VERIFYING
    assert not VerdictRecord.objects.exists()


def verdict_for(lease: Lease, outcome: str) -> Verdict:
    verification.challenge(lease)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(challenges, "issue", lambda lease, verdict: made.append(verdict))
        made: list[Verdict] = []
        verification.reject_late(lease)
    changes = {
        "verdict": outcome,
        "verified_epochs": 2,
        "fault": Fault.NOBODY if outcome == "verified" else Fault.WORKER,
    }
    return made[0].model_copy(update=changes)


# -- evidence ----------------------------------------------------------------------------------------------------------


def test_the_record_of_an_honest_run_is_whole(run: Run) -> None:
    finished(run)
    record = evidence.read(Lease.objects.get())
    assert record.chain_problem is None
    assert record.losses == run.executable.losses
    assert len(record.leaves) == len(run.lease.terms.leaf_steps())
    assert record.frames == len(run.executable.frames)


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize("column", ["payload", "hash", "prev"])
def test_a_stored_frame_that_was_altered_is_found(run: Run, column: str) -> None:
    finished(run)
    frame = Frame.objects.order_by("seq")[1]
    Frame.objects.filter(pk=frame.pk).update(**{column: flipped(bytes(getattr(frame, column)))})
    assert evidence.read(Lease.objects.get()).chain_problem


def test_a_missing_frame_an_unsigned_end_and_a_forged_leaf_are_found(run: Run) -> None:
    finished(run)
    lease, log = Lease.objects.get(), Log.objects.get()
    leaf = log.leaves.get(index=1)
    log.leaves.filter(index=1).update(state="00" * 32)
    assert "leaf 1" in (evidence.read(lease).chain_problem or "")
    log.leaves.filter(index=1).update(state=leaf.state)
    Log.objects.update(fin_signature=None)
    assert "not signed" in (evidence.read(lease).chain_problem or "")
    Log.objects.update(fin_signature=bytes(64))
    assert "signature" in (evidence.read(lease).chain_problem or "")
    Frame.objects.order_by("seq")[2].delete()
    assert "does not follow" in (evidence.read(lease).chain_problem or "")


@pytest.mark.django_db
def test_rules_that_need_no_replay_are_shown_with_the_challenge(run: Run) -> None:
    job = finished(run)
    assert telemetry.events(job, "").rules == ()
    verification.challenge(verification.finished_lease(job))
    shown = {rule.rule: rule.result for rule in telemetry.events(Job.objects.get(pk=job.pk), "").rules}
    assert shown["log-count"] == shown["log-chain"] == "pass"
    assert "replay" not in shown


@pytest.mark.django_db
def test_a_platform_that_was_away_gives_the_usual_time_to_open_states(run: Run) -> None:
    job = finished(run)
    drawn = verification.challenge(verification.finished_lease(job))
    Challenge.objects.update(deadline=clock.now() - timedelta(seconds=1))
    assert verification.forgive_silence() == 1
    assert verification.late(clock.now()) == []
    drawn.refresh_from_db()
    assert verification.late(drawn.deadline + timedelta(seconds=1)) == [drawn.lease]
