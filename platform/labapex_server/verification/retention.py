"""Which states of runs that are not over the platform keeps. Those that nobody can ask for any more are deleted.

A lost host's go when its job waits for a host that begins anew; those that are handed over stay as long as the run may go on
from them or be challenged. Of a job that has ended stays what its challenge asked for, which its proof is made of, of one that
was stopped what it may be resumed from, and whatever a host handed in in whose work something false was found: that is the
evidence, until `verification.erasing` deletes it.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from uuid import UUID

from labapex.protocol.contract import Handover
from labapex.protocol.states import JobState, LeaseState
from labapex_server.jobs.models import Job
from labapex_server.lib import store
from labapex_server.verification import openings
from labapex_server.verification.models import Challenge, OpenedState

_OVER = (LeaseState.SETTLED.value, LeaseState.EXPIRED.value, LeaseState.FAILED.value)


def forget(now: datetime) -> int:
    """Delete the states of ended leases that nothing can lead back to. Returns how many; any number of processes may."""
    # First the states, then the jobs: so a job that waits for what is found out about its lost host is seen to.
    states = defaultdict(list)
    for state in OpenedState.objects.filter(kept=False, lease__state__in=_OVER).select_related("lease"):
        states[state.lease.job_id].append(state)
    forgotten = 0
    for job in Job.objects.in_bulk(list(states)).values():
        if job.state == JobState.RESUMING.value or (job.claimed_until is not None and job.claimed_until > now):
            continue
        needed = _needed(job)
        for state in states[job.pk]:
            if (state.lease_id, state.index) not in needed:
                store.delete(state.path)
                state.delete()
                forgotten += 1
            elif JobState(job.state).ended:
                OpenedState.objects.filter(pk=state.pk).update(kept=True)
    return forgotten


def _needed(job: Job) -> set[tuple[UUID, int]]:
    """The leases and leaves whose states a job can still be asked for."""
    if not JobState(job.state).ended:
        handovers = map(Handover.model_validate, job.handovers)
        return {(each.lease, index) for each in handovers for index in each.held}
    handovers = map(Handover.model_validate, job.handovers if job.resumable else ())
    drawn = Challenge.objects.filter(lease__job=job).select_related("lease")
    return {(each.lease, index) for each in handovers for index in each.held} | {
        (state.lease_id, state.index) for each in drawn for state in openings.opened(each.lease.terms, each.all_indices)
    }
