"""Settled jobs whose verdicts are right or wrong, through the real services; a stand-in replays."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import Host, Run, a_run, a_true_digest, a_true_state, queued_job
from tests.labapex_server.scenes import finished, stand_in

from labapex.protocol.states import Fault, JobState
from labapex.protocol.verdict import RuleResult, Verdict, Weight
from labapex_server.accounts.models import User
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.pipeline import disputing, stages
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge

EPOCHS, PER_EPOCH, EVERY = 3, 7, 3
STEPS = sorted({*range(0, EPOCHS * PER_EPOCH, EVERY), *range(PER_EPOCH, EPOCHS * PER_EPOCH + 1, PER_EPOCH)})
LAST = len(STEPS) - 1
DICE = random.Random(7)
LOSSES = [DICE.random() for _ in range(EPOCHS * PER_EPOCH)]
STATES = [a_true_digest(index) for index in range(len(STEPS))]
PAID = 60  # micro-credits, for all epochs


def nothing() -> None:
    """A beat that is always fine."""


@pytest.fixture
def another_platform(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its runner."""
    stand_in(settings, monkeypatch)


def trained(owner: User, host: Host, *, false: int | None = None, **truth: Any) -> Run:
    """A run whose log is complete. `false`: the leaf whose committed state is not the one that training comes to."""
    told = {"steps": STEPS, "losses": LOSSES, "states": STATES} | truth
    job = queued_job(
        owner, epochs=EPOCHS, per_epoch=PER_EPOCH, every=EVERY, script=f"true: {json.dumps(told)}".encode()
    )
    job.hold = ledger.hold(ledger.account_of(owner), amount=job.budget, job=job.pk, memo="budget")
    job.save()
    states = [a_true_digest(99) if index == false else state for index, state in enumerate(STATES)]
    run = a_run(Job.objects.get(pk=job.pk), host, state_size=len(a_true_state(0)), states=states)
    finished(run)
    verification.challenge(verification.finished_lease(Job.objects.get(pk=job.pk)))
    return run


def shown(run: Run, *, false: int | None = None) -> None:
    """All states that are asked for."""
    lease = verification.finished_lease(Job.objects.get(pk=run.lease.job_id))
    for index in Challenge.objects.get(lease=lease).wanted:
        verification.accept_state(lease, index, io.BytesIO(a_true_state(99 if index == false else index)))


def settled(run: Run) -> Job:
    """What the platform's stages make of it."""
    for state, stage in ((JobState.VERIFYING, stages.verify), (JobState.SETTLING, stages.settle)):
        if Job.objects.get(pk=run.lease.job_id).state == state.value:
            assert stages.work(run.lease.job_id, state, stage)
    return Job.objects.get(pk=run.lease.job_id)


def verified(owner: User, host: Host, **truth: Any) -> Job:
    run = trained(owner, host, **truth)
    shown(run)
    return settled(run)


def rejected(owner: User, host: Host, *, false: int) -> Job:
    """A host that lied, and was found out."""
    run = trained(owner, host, false=false)
    shown(run, false=false)
    return settled(run)


def unshown(owner: User, host: Host) -> Job:
    """An honest host that did not open its states in time."""
    run = trained(owner, host)
    verification.reject_late(verification.finished_lease(Job.objects.get(pk=run.lease.job_id)))
    return settled(run)


def wrongly_judged(run: Run, *, word: str, false: int | None = None) -> Job:
    """The platform errs: it gives the verdict `word` on a run whose states were shown."""
    shown(run, false=false)
    lease = verification.finished_lease(Job.objects.get(pk=run.lease.job_id))
    good = word == "verified"
    replay = RuleResult(rule="replay", value=0.0, limit=0.0, result="pass" if good else "fail", weight=Weight.DECIDES)
    terms = lease.terms
    from labapex_server.verification import evidence, judgement

    seen = judgement.evidence(lease, evidence.read(lease), pev_percent=10)
    made: Verdict = judgement.verdict(lease, seen, drawn=1, opened=(), shown_bytes=0, weights=None)
    given = made.model_copy(
        update={
            "verdict": word,
            "deciding_rule": None if good else "replay",
            "reason": "as the test has it",
            "fault": Fault.NOBODY if good else Fault.WORKER,
            "blamed": None if good else lease.pk,
            "verified_epochs": terms.epochs if good else 0,
            "rules": (replay,),
            "weights": "ab" * 32 if good else None,
        }
    )
    assert verification.issue(lease, given)
    return settled(run)


def ruled(user: User, job: Job, reason: str = "it is not so") -> Dispute:
    """Contest a job's verdict, and have it ruled."""
    dispute = disputes.contest(user, job.pk, reason)
    assert disputing.work(dispute.pk)
    return Dispute.objects.get(pk=dispute.pk)
