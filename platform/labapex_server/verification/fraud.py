"""What the operator is to look at: hosts that were found to lie, each with the evidence, and whose jobs these were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, OuterRef

from labapex.protocol.ruling import Outcome
from labapex.protocol.states import Fault, JobState
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.marketplace.models import Lease
from labapex_server.workers import reputation
from labapex_server.workers.models import Finding, Mark
from labapex_server.workers.reputation import Reputation

LIES = (Finding.FALSE.value, Finding.UNOPENED.value)
_BY_OPERATOR = (Finding.BANNED.value, Finding.UNBANNED.value)


@dataclass(frozen=True)
class Standing:
    """What a client's ended jobs say of him: a script can be written to make honest work look false, or to fail."""

    verified: int
    rejected: int
    hosts: int  # that were found to lie in his jobs
    failed: int  # by their script's own doing, or refused before
    disputes_lost: int  # that he opened

    def __str__(self) -> str:
        return (
            f"{self.verified} verified, {self.rejected} rejected, {self.failed} failed by the script;"
            f" {self.hosts} host(s) found false in them; {self.disputes_lost} dispute(s) lost"
        )


@dataclass(frozen=True)
class Case:
    mark: Mark
    job: Job
    worker: Reputation
    client: Standing


def queue(since: datetime) -> Iterator[Case]:
    """What was found since then of workers about whom the operator has decided nothing after it, the newest first."""
    decided = Mark.objects.filter(worker=OuterRef("worker"), finding__in=_BY_OPERATOR, pk__gt=OuterRef("pk"))
    ruled = Mark.objects.filter(lease=OuterRef("lease"), finding=Finding.REVERSED.value, pk__gt=OuterRef("pk"))
    found = Mark.objects.filter(~Exists(decided), ~Exists(ruled), finding__in=LIES, at__gte=since)
    for mark in found.select_related("worker__owner").order_by("-pk"):
        assert mark.lease is not None  # only the operator's marks are about none
        job = Lease.objects.select_related("job__owner").get(pk=mark.lease).job
        yield Case(mark, job, reputation.of(mark.worker), standing(job.owner))


def standing(client: User) -> Standing:
    """Of all jobs of a client."""
    jobs = Job.objects.filter(owner=client)
    leases = Lease.objects.filter(job__owner=client).values("pk")
    return Standing(
        verified=jobs.filter(state=JobState.VERIFIED.value).count(),
        rejected=jobs.filter(state=JobState.REJECTED.value).count(),
        hosts=Mark.objects.filter(finding__in=LIES, lease__in=leases).values("worker").distinct().count(),
        failed=jobs.filter(state__in=(JobState.FAILED, JobState.REFUSED), fault=Fault.CLIENT.value).count(),
        disputes_lost=client.disputes.filter(outcome=Outcome.UPHELD.value).count(),
    )
