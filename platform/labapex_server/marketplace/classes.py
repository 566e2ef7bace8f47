"""On which class of hosts a job runs: that of its preflight, and that of those who began its run."""

from __future__ import annotations

from labapex.protocol.contract import Contract, Environment
from labapex_server.jobs.models import Job
from labapex_server.marketplace.models import Lease


def own_class(job: Job, terms: Contract) -> Environment | None:
    """The class of hosts on which the job's preflight ran, and its replay will."""
    found = (job.preflight or {}).get("environment")
    return Environment.model_validate({**found, "threads": terms.threads}) if found else None


def another_class(before: Lease | None, environment: Environment) -> bool:
    """Whether a host could not go on with the run of `before` so that bits stay the same."""
    if before is None or before.environment is None:
        return False
    there = environment.model_copy(update={"threads": before.terms.threads})
    return there != Environment.model_validate(before.environment)
