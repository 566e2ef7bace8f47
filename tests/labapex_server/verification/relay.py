"""A run that goes from host to host: a script whose every state is known, and what hosts do with it."""

from __future__ import annotations

import base64
import io
import json
import random
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from tests.labapex_server.gateway.stage import Host, Run, a_run, a_true_digest, a_true_state

from labapex.protocol.states import JobState
from labapex.protocol.verdict import Verdict
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.pipeline import stages
from labapex_server.telemetry import services as telemetry
from labapex_server.verification import services as verification
from labapex_server.verification.models import Challenge, OpenedState

EPOCHS, PER_EPOCH, EVERY = 3, 7, 3
STEPS = sorted({*range(0, EPOCHS * PER_EPOCH, EVERY), *range(PER_EPOCH, EPOCHS * PER_EPOCH + 1, PER_EPOCH)})
LAST = len(STEPS) - 1
DICE = random.Random(7)
LOSSES = [DICE.random() for _ in range(EPOCHS * PER_EPOCH)]
STATES = [a_true_digest(index) for index in range(len(STEPS))]
FILES = [base64.b64encode(a_true_state(index)).decode() for index in range(len(STEPS))]
SCRIPT = "true: " + json.dumps({"steps": STEPS, "losses": LOSSES, "states": STATES, "files": FILES})


def nothing() -> None:
    """A beat that is always fine."""


def training(job: Job, host: Host, **kwargs: Any) -> Run:
    """A host that trains the script truly, unless `kwargs` say otherwise."""
    return a_run(Job.objects.get(pk=job.pk), host, **{"state_size": len(a_true_state(0)), "states": STATES} | kwargs)


def send(run: Run, iterations: int) -> None:
    """Whole frames of a run's log, until the platform has so many losses of it."""
    for frame in run.executable.frames:
        if frame.first < iterations:
            telemetry.ingest(run.host.worker.pk, frame)


def hand_in(run: Run, *indices: int) -> None:
    for index in indices:
        assert verification.keep_state(run.lease, index, io.BytesIO(a_true_state(index)))


def lose(run: Run) -> Job:
    """The host falls silent."""
    Lease.objects.filter(pk=run.lease.pk).update(expires_at=clock.now() - timedelta(seconds=1))
    assert marketplace.expire_silent(clock.now()) == 1
    return Job.objects.get(pk=run.lease.job_id)


def resumed(run: Run) -> Job:
    """The host falls silent, and the platform looks at what it had done."""
    assert lose(run).state == JobState.RESUMING
    assert stages.work(run.lease.job_id, JobState.RESUMING, stages.resume)
    return Job.objects.get(pk=run.lease.job_id)


def states_here() -> set[tuple[UUID, int]]:
    """Lease and leaf of every state that the platform has."""
    rows = {(state.lease_id, state.index): state.path for state in OpenedState.objects.all()}
    assert set(settings.LABAPEX.home.glob("leases/*/states/*")) == set(rows.values())
    return set(rows)


def judged(run: Run) -> Verdict:
    """Challenge a run whose log is complete, open what is asked for, and judge it."""
    lease = verification.finished_lease(Job.objects.get(pk=run.lease.job_id))
    verification.challenge(lease)
    for index in Challenge.objects.get(lease=lease).wanted:
        verification.accept_state(lease, index, io.BytesIO(a_true_state(index)))
    verification.verify(lease, beat=nothing)
    return verification.signed(Job.objects.get(pk=run.lease.job_id)).verdict
