"""How a host earns and loses trust: whole jobs through the platform's stages, with its own draw, rules, signatures and money."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from django.test import Client
from tests.labapex_server.gateway.stage import Host, a_run, a_true_digest, a_true_state, queued_job
from tests.labapex_server.scenes import finished, stand_in

from labapex.protocol.states import JobState
from labapex.protocol.verdict import Verdict
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.pipeline import stages
from labapex_server.verification import services as verification
from labapex_server.verification.audit import OVERHEAD
from labapex_server.verification.models import Challenge
from labapex_server.workers.reputation import TRUSTED_AFTER

ITERATIONS, EVERY = 600, 3
STEPS = list(range(0, ITERATIONS + 1, EVERY))
DICE = random.Random(7)
LOSSES = [DICE.random() for _ in range(ITERATIONS)]
STATES = [a_true_digest(index) for index in range(len(STEPS))]
SCRIPT = f"true: {json.dumps({'steps': STEPS, 'losses': LOSSES, 'states': STATES})}".encode()


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def judged(client: User, host: Host, *, false: int | None = None) -> tuple[Job, Verdict]:
    """A job of one epoch as the host trains it, from its queue to its end. `false`: the leaf whose state it did not train."""
    job = queued_job(client, epochs=1, per_epoch=ITERATIONS, every=EVERY, script=SCRIPT)
    Job.objects.filter(pk=job.pk).update(
        hold=ledger.hold(ledger.account_of(client), amount=job.budget, job=job.pk, memo="budget")
    )
    states = [a_true_digest(9999) if index == false else state for index, state in enumerate(STATES)]
    run = a_run(
        Job.objects.get(pk=job.pk),
        host,
        losses=list(LOSSES),
        states=states,
        state_size=len(a_true_state(0)),
        frame_losses=100,
    )
    finished(run)
    assert stages.work(job.pk, JobState.CHALLENGED, stages.challenge)
    lease = verification.finished_lease(job)
    for index in Challenge.objects.get(lease=lease).wanted:
        verification.accept_state(lease, index, io.BytesIO(a_true_state(9999 if index == false else index)))
    assert stages.work(job.pk, JobState.VERIFYING, stages.verify)
    assert stages.work(job.pk, JobState.SETTLING, stages.settle)
    job.refresh_from_db()
    return job, verification.signed(job).verdict


def again(verdict: Verdict) -> float:
    """The share of a run that the platform trained again."""
    segments = Challenge.objects.get(lease=verdict.lease).segments
    assert verdict.cost.segments_replayed == len(segments)
    return float(sum(STEPS[segment + 1] - STEPS[segment] for segment in segments) / ITERATIONS)


def told(host: Host) -> str:
    """What the host's owner reads of it on his page."""
    visitor = Client()
    visitor.force_login(host.worker.owner)
    return visitor.get("/workers/").content.decode()


def test_ten_verified_jobs_earn_trust_one_proven_lie_ends_it_at_once_and_ten_more_regain_it(
    researcher: User, rig: Host
) -> None:
    for number in range(TRUSTED_AFTER):
        job, verdict = judged(researcher, rig)
        assert job.state == JobState.VERIFIED, job.reason
        assert again(verdict) > 1 / OVERHEAD, f"job {number} of a host that is not trusted yet"
    assert "trusted: 10 verified in a row" in told(rig)
    job, verdict = judged(researcher, rig)
    assert job.state == JobState.VERIFIED
    assert again(verdict) <= 1 / OVERHEAD

    job, verdict = judged(researcher, rig, false=1)
    assert (job.state, verdict.deciding_rule) == (JobState.REJECTED, "replay"), job.reason
    assert "0 verified in a row, trusted after 10; 1 proven false" in told(rig)

    for number in range(TRUSTED_AFTER):
        job, verdict = judged(researcher, rig)
        assert job.state == JobState.VERIFIED
        assert again(verdict) > 1 / OVERHEAD, f"job {number} after the lie"
    assert "trusted: 10 verified in a row; 1 proven false" in told(rig)
    _, verdict = judged(researcher, rig)
    assert again(verdict) <= 1 / OVERHEAD
