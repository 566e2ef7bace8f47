"""Jobs at every stage, brought there by the real services."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.labapex_server.gateway.stage import Run, a_state

from labapex.protocol.api import JobRequest
from labapex.protocol.spec import Bundle, JobSpec, Part
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.jobs.signals import advanced
from labapex_server.telemetry import services as telemetry
from labapex_server.verification import services as verification

STAND_IN = Path(__file__).with_name("stand_in_runner.py")


def upload(owner: User, content: bytes, path: str) -> Part:
    digest = hashlib.sha256(content).hexdigest()
    blobs.store(owner, digest, io.BytesIO(content), size=len(content))
    return Part(path=path, digest=digest, size=len(content))


def request(owner: User, script: str = "fine", **spec: Any) -> JobRequest:
    """A request whose files are uploaded; `script` is what the stand-in runner goes by."""
    fields = {"script": "train.py", "epochs": 2, "budget": "1", "checkpoint_every": 3} | spec
    data = (upload(owner, b"0123456789", "data/digits.bin"),) if fields.get("data") else ()
    return JobRequest(
        spec=JobSpec.model_validate(fields),
        bundle=Bundle(code=(upload(owner, script.encode(), "train.py"),), data=data),
    )


def submitted(owner: User, script: str = "fine", **spec: Any) -> Job:
    return jobs.submit(owner, request=request(owner, script, **spec))


def finished(run: Run) -> Job:
    """Send a run's whole log; its job is then challenged."""
    for frame in run.executable.frames:
        telemetry.ingest(run.host.worker.pk, frame)
    telemetry.finish(run.host.worker.pk, run.executable.fin())
    return Job.objects.get(pk=run.lease.job_id)


def opened(run: Run) -> Job:
    """Draw the challenge and open all that it asks for."""
    job = Job.objects.get(pk=run.lease.job_id)
    lease = verification.finished_lease(job)
    if verification.challenge(lease).round == 0:
        verification.accept_chunks(lease, 0, io.BytesIO(run.executable.answer()))
    for index in verification.challenge(lease).indices:
        verification.accept_state(lease, index, io.BytesIO(a_state(run.executable.state_size)))
    return Job.objects.get(pk=job.pk)


def stand_in(settings: Any, monkeypatch: Any) -> None:
    """Let the stand-in play the runner: in the sandbox where one can be had, else as a plain child."""
    from labapex import sandbox

    if sandbox.available() is not None:
        monkeypatch.setenv(sandbox.UNCONFINED_SETTING, "1")
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"runner_command": (sys.executable, str(STAND_IN))})


@contextmanager
def heard() -> Iterator[list[JobState]]:
    """The states that `advanced` told of."""
    states: list[JobState] = []

    def listen(*, state: JobState, **_: Any) -> None:
        states.append(state)

    advanced.connect(listen)
    try:
        yield states
    finally:
        advanced.disconnect(listen)
