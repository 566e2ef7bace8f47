"""A host is lost, and another one goes on with its run: through the real services, a stand-in replays."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import (
    ENVIRONMENT,
    Host,
    a_host,
    a_run,
    a_true_digest,
    a_true_state,
    key_request,
    queued_job,
)
from tests.labapex_server.scenes import finished, stand_in
from tests.labapex_server.verification.relay import (
    EPOCHS,
    EVERY,
    LOSSES,
    PER_EPOCH,
    SCRIPT,
    STATES,
    STEPS,
    hand_in,
    judged,
    lose,
    resumed,
    send,
    states_here,
    training,
)

from labapex.protocol.states import JobState, LeaseState
from labapex_server.accounts.models import User
from labapex_server.api.receipts import receipt
from labapex_server.gateway import books
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock
from labapex_server.lib.errors import Missing, OtherClass, Refused, TooLarge
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.telemetry import charts
from labapex_server.telemetry import services as telemetry
from labapex_server.verification import earnings, evidence, proofs, takeover
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge
from labapex_server.web import reads
from labapex_server.workers import reputation
from labapex_server.workers.reputation import Reputation


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_seconds": 0.001})


@pytest.fixture
def job(researcher: User) -> Job:
    """Its budget is held."""
    made = queued_job(researcher, epochs=EPOCHS, per_epoch=PER_EPOCH, every=EVERY, script=SCRIPT.encode())
    made.hold = ledger.hold(ledger.account_of(researcher), amount=made.budget, job=made.pk, memo="budget")
    made.save()
    return made


@pytest.fixture
def second(host: User) -> Host:
    return a_host(host, "second")


# -- while a host trains -----------------------------------------------------------------------------------------------


def test_a_training_host_hands_in_the_first_state_and_then_the_newest(job: Job, rig: Host) -> None:
    run = training(job, rig)
    assert run.lease.terms.upload_every == 1
    assert verification.wanted_to_keep(run.lease) is None  # nothing is committed to yet
    send(run, 8)
    assert verification.wanted_to_keep(run.lease) == 0
    hand_in(run, 0)
    assert verification.wanted_to_keep(run.lease) == 3  # that of iteration 7: those between are passed over
    (news,) = books.news([books.Asked(rig.worker.pk, frozenset([run.lease.pk]), frozenset(), states=True)])
    (asked,) = news.challenges.values()
    assert asked.indices == (3,)
    hand_in(run, 3)
    assert verification.wanted_to_keep(run.lease) is None
    assert not verification.keep_state(run.lease, 3, io.BytesIO())


def test_only_a_committed_state_of_bearable_size_is_taken_in(job: Job, rig: Host, settings: Any) -> None:
    run = training(job, rig)
    send(run, 4)
    with pytest.raises(Missing):
        verification.keep_state(run.lease, 4, io.BytesIO(a_true_state(4)))
    with pytest.raises(Refused, match="committed"):
        verification.keep_state(run.lease, 1, io.BytesIO(a_true_state(2)))
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"handover_gb": 1e-9})
    with pytest.raises(TooLarge):
        verification.keep_state(run.lease, 1, io.BytesIO(a_true_state(1)))
    assert verification.wanted_to_keep(run.lease) == 0
    assert not list((settings.LABAPEX.home / "leases" / str(run.lease.pk) / "states").iterdir())


def test_no_state_is_asked_for_where_the_client_wants_none_or_the_operator(researcher: User, rig: Host) -> None:
    run = a_run(queued_job(researcher, takeover=False), rig)
    assert run.lease.terms.upload_every == 0
    send(run, 4)
    assert verification.wanted_to_keep(run.lease) is None
    assert lose(run).state == JobState.QUEUED


# -- when it is lost ---------------------------------------------------------------------------------------------------


def test_another_host_goes_on_and_each_is_paid_for_the_epochs_that_ended_on_it(
    job: Job, rig: Host, second: Host, researcher: User
) -> None:
    first = training(job, rig)
    send(first, 12)
    hand_in(first, 0, 2, 4)
    held = resumed(first)
    assert (held.state, held.attempts) == (JobState.QUEUED, 0)
    assert "another worker goes on from iteration 9" in held.reason
    assert verification.forget_states(clock.now()) == 0
    assert jobs.view(held).progress.iterations == 12

    run = training(job, second)
    terms = run.lease.terms
    assert (run.lease.seed, terms.first) == (first.lease.seed, first.lease.terms)
    assert terms.after is not None
    assert (terms.after.step, terms.held) == (9, {0, 2, 4})
    assert verification.handed_over(run.lease, 4).read_bytes() == a_true_state(4)
    with pytest.raises(Missing):
        verification.handed_over(run.lease, 2)
    assert jobs.view(Job.objects.get()).progress.iterations == 9

    finished(run)
    lease = Lease.objects.get(pk=run.lease.pk)
    assert telemetry.losses(lease) == LOSSES
    assert [leaf.index for leaf in telemetry.leaves(lease)] == list(range(len(STEPS)))
    record = evidence.read(lease)
    assert (record.chain_problem, record.losses, record.known) == (None, LOSSES, frozenset())

    verdict = judged(run)
    assert (verdict.verdict, verdict.loss_logs) == ("verified", len(LOSSES)), verdict.reason
    assert not set(Challenge.objects.get().wanted) & terms.held
    manifest, contents = proofs.prepare(Job.objects.get())
    assert {"states/0.safetensors", "states/4.safetensors"} <= contents.keys()
    assert manifest.contract == verdict.contract

    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    shares = marketplace.shares(Lease.objects.get(pk=run.lease.pk))
    assert [(share.lease.pk, share.epochs) for share in shares] == [(first.lease.pk, 1), (run.lease.pk, 2)]
    money = receipt(Job.objects.get())
    assert money.paid == sum(share.amount for share in shares) > 0
    assert money.paid + money.refunded == money.held
    assert [(each.worker, each.amount) for each in money.payments] == [
        (share.lease.worker.name, share.amount) for share in shares
    ]
    earned = reads.earnings([rig.worker.pk, second.worker.pk], rig.worker.owner)
    assert earned == {share.lease.worker_id: share.amount for share in shares}
    for share in shares:
        (found,) = earnings.of(share.lease.worker, skip=0).results
        assert (found.paid, found.verified_epochs) == (share.amount, share.epochs)
    assert {lease.state for lease in Lease.objects.all()} == {LeaseState.SETTLED}
    assert reputation.of(rig.worker) == Reputation(verified=1, in_a_row=1, lost=1)
    assert reputation.of(second.worker) == Reputation(verified=1, in_a_row=1)
    assert "Handed over" in {step.title for step in reads.timeline(Job.objects.get())}

    drawn = set(Challenge.objects.get().all_indices) - {2}
    Challenge.objects.update(indices=sorted(drawn), further=[])  # had chance left that leaf out
    assert verification.forget_states(clock.now()) == 1
    assert states_here() == {(first.lease.pk if index in terms.held else run.lease.pk, index) for index in drawn}
    assert proofs.prepare(Job.objects.get())[1].keys() == contents.keys() - {"states/2.safetensors"}
    assert verification.forget_states(clock.now()) == 0


def test_a_page_is_shown_each_iteration_once_and_where_the_host_changed(job: Job, rig: Host, second: Host) -> None:
    first = training(job, rig)
    send(first, 16)
    hand_in(first, 0, 4)
    early = telemetry.events(Job.objects.get(), "")
    send(first, 20)
    seen = telemetry.events(Job.objects.get(), early.cursor)
    assert (len(early.losses), len(seen.losses)) == (16, 4)
    resumed(first)
    run = training(job, second)
    send(run, 13)
    page = telemetry.events(Job.objects.get(), seen.cursor)
    assert (page.restarted, page.kept) == (True, 9)
    (handover,) = page.handovers
    assert (handover.iteration, handover.before, handover.after) == (9, "rig", "second")
    assert (page.first, list(page.losses)) == (9, LOSSES[9:13])
    assert [line.text for line in page.console] == ["iteration 9\n"]  # what was printed before is not told again
    fresh = telemetry.events(Job.objects.get(), "")
    assert (fresh.restarted, fresh.first, list(fresh.losses)) == (False, 0, LOSSES[:13])
    send(run, 17)
    more = telemetry.events(Job.objects.get(), page.cursor)
    assert (more.restarted, more.first, list(more.losses)) == (False, 13, LOSSES[13:17])
    parts = charts.Standing.of(Job.objects.get()).parts
    assert charts.length(parts) == len(charts.pieces(parts, 0))


def test_a_run_may_go_through_any_number_of_hosts(job: Job, rig: Host, host: User) -> None:
    run, lost = training(job, rig), []
    for number, (iterations, state) in enumerate([(8, 3), (11, 4), (16, 6)]):
        send(run, iterations)
        hand_in(run, *((0, state) if number == 0 else (state,)))
        resumed(run)
        lost.append(run.lease.pk)
        run = training(job, a_host(host, f"host {number}"))
    finished(run)
    lease = Lease.objects.get(pk=run.lease.pk)
    assert telemetry.losses(lease) == LOSSES
    stints = lease.terms.stints()
    assert [stint.lease for stint in stints] == [*lost, lease.pk]
    assert all(a.stop == b.start and a.last + 1 == b.first for a, b in pairwise(stints))
    assert judged(run).verdict == "verified"
    assert sum(share.epochs for share in marketplace.shares(lease)) == EPOCHS


def test_a_host_that_is_lost_before_it_handed_anything_in_costs_its_own_part_only(
    job: Job, rig: Host, second: Host, host: User
) -> None:
    first = training(job, rig)
    send(first, 12)
    hand_in(first, 0, 4)
    resumed(first)
    silent = training(job, second)
    send(silent, 16)
    assert resumed(silent).attempts == 1
    run = training(job, a_host(host, "third"))
    assert [each.lease for each in run.lease.terms.handovers] == [first.lease.pk]
    finished(run)
    assert judged(run).verdict == "verified"  # what the silent one had committed to is its own run, too


def test_what_nobody_handed_in_is_begun_anew_under_another_seed(job: Job, rig: Host, second: Host) -> None:
    first = training(job, rig)
    send(first, 12)
    assert "begins anew" in resumed(first).reason
    run = training(job, second)
    assert (run.lease.terms.after, run.lease.terms.handovers) == (None, ())
    assert run.lease.seed != first.lease.seed


def test_states_that_no_run_goes_on_from_are_deleted(job: Job, rig: Host, second: Host) -> None:
    first = training(job, rig)
    send(first, 12)
    hand_in(first, 4)  # which leads back to no beginning
    assert verification.forget_states(clock.now()) == 0, "it trains"
    lose(first)
    assert verification.forget_states(clock.now()) == 0, "it is not known yet whether another one can go on"
    stages.work(job.pk, JobState.RESUMING, stages.resume)
    assert "begins anew" in Job.objects.get().reason
    assert verification.forget_states(clock.now()) == 1
    run = training(job, second)
    send(run, 6)
    hand_in(run, 0, 1)
    assert verification.forget_states(clock.now()) == 0
    verification.stop(resumed(run))
    assert states_here() == {(run.lease.pk, 0), (run.lease.pk, 1)}
    assert verification.forget_states(clock.now()) == 2
    assert states_here() == set()


@pytest.mark.parametrize("lie", ["losses", "states"])
def test_a_lie_is_found_before_another_host_goes_on_with_it(job: Job, rig: Host, second: Host, lie: str) -> None:
    """The first host logs better losses, or exchanges the state once, and is honest from there on."""
    told = [0.9 * loss for loss in LOSSES] if lie == "losses" else LOSSES
    states = [a_true_digest(index if index < 2 else index + 20) for index in range(len(STEPS))]
    liar = training(job, rig, losses=told, states=STATES if lie == "losses" else states)
    send(liar, 12)
    for index in (0, 4):
        shown = index if lie == "losses" or index < 2 else index + 20
        verification.keep_state(liar.lease, index, io.BytesIO(a_true_state(shown)))
    begun = resumed(liar)
    assert (begun.state, begun.attempts) == (JobState.QUEUED, 1)
    assert "is false" in begun.reason
    assert ("point-loss" if lie == "losses" else "replay") in begun.reason
    assert Lease.objects.get(pk=liar.lease.pk).state == LeaseState.REJECTED
    assert reputation.of(rig.worker) == Reputation(false=1, lost=1)
    assert marketplace.lease(rig.worker) is None
    assert verification.forget_states(clock.now()) == 0, "they are the evidence"
    honest = training(job, second)
    assert honest.lease.terms.handovers == ()
    assert honest.lease.seed != liar.lease.seed
    finished(honest)
    assert judged(honest).verdict == "verified"


def test_an_earlier_hosts_lie_that_is_found_at_the_end_is_that_hosts_and_nobody_is_paid(
    job: Job, rig: Host, second: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = training(job, rig, losses=[*LOSSES[:4], 0.9 * LOSSES[4], *LOSSES[5:]])
    send(first, 12)
    hand_in(first, 0, 2, 4)
    lose(first)
    monkeypatch.setattr(takeover, "draw_stint", lambda leaves, begin, **_: (begin,))  # chance: it looks elsewhere
    stages.work(job.pk, JobState.RESUMING, stages.resume)
    run = training(job, second)
    finished(run)
    verdict = judged(run)
    assert (verdict.verdict, verdict.deciding_rule, verdict.blamed) == ("rejected", "point-loss", first.lease.pk)
    assert "in the part of rig" in verdict.reason
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    states = {lease.pk: lease.state for lease in Lease.objects.all()}
    assert states == {first.lease.pk: LeaseState.REJECTED, run.lease.pk: LeaseState.SETTLED}
    assert ledger.outcome(Job.objects.get().hold).paid == 0
    assert reputation.of(rig.worker) == Reputation(false=1, lost=1)
    assert reputation.of(second.worker) == Reputation()


# -- who may go on -----------------------------------------------------------------------------------------------------


def test_a_host_of_another_class_does_not_go_on_and_after_a_time_begins_anew(
    job: Job, rig: Host, second: Host, settings: Any
) -> None:
    first = training(job, rig)
    send(first, 12)
    hand_in(first, 0, 4)
    resumed(first)
    granted = marketplace.lease(second.worker)
    assert granted is not None
    request = key_request(granted[0])[0]
    other = request.model_copy(update={"environment": ENVIRONMENT.model_copy(update={"capability": "AVX512"})})
    with pytest.raises(OtherClass):
        marketplace.release_keys(granted[0], request=other)
    assert Job.objects.get().state == JobState.QUEUED
    second.worker.refresh_from_db()
    assert marketplace.lease(second.worker) is None
    again = training(job, rig)  # its own host may come back
    assert again.lease.terms.after is not None
