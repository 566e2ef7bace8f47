"""A job whose only purpose is to be looked at whole: to its host it is a client's like any other."""

from __future__ import annotations

import random

from labapex.protocol.api import JobRequest
from labapex.protocol.spec import MAX_AUDIT_SEGMENTS
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Missing


def submit(owner: User, draw: random.Random) -> Job:
    """Submit one of the verified jobs of an account once more, as its owner would, but with all segments to be replayed.

    Raises `Missing` where it has none (with models that jobs start from they are left out), and as `jobs.submit` does."""
    verified = Job.objects.filter(owner=owner, state=JobState.VERIFIED.value, parents=[])
    if not verified:
        raise Missing(
            f"no job of {owner} was verified yet: submit some, as a client would, and wait for their verdicts"
        )
    chosen = draw.choice(list(verified.order_by("pk")))
    spec = chosen.job_spec.model_copy(update={"audit_segments": MAX_AUDIT_SEGMENTS})
    return jobs.submit(owner, request=JobRequest(spec=spec, bundle=chosen.files))
