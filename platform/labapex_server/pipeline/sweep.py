"""Every two seconds: what time itself decides, and what a lost message, a dead process or a dead broker left lying."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Q

from labapex.protocol.states import JobState
from labapex_server.alerts import delivery
from labapex_server.alerts import services as alerts
from labapex_server.disputes.models import OPEN, Dispute
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.pipeline import conveyor
from labapex_server.telemetry import services as telemetry
from labapex_server.verification import services as verification

log = logging.getLogger(__name__)
_AT_ONCE = 200


@dataclass(frozen=True)
class Swept:
    rung: int
    silent: int
    released: int
    late: int
    forgotten: int
    explained: int
    alerted: int


def sweep(now: datetime | None = None) -> Swept:
    """One round. Any number of processes may sweep at once: each step is a compare-and-swap."""
    now = now or clock.now()
    silent = marketplace.expire_silent(now)
    silent += sum(marketplace.give_up(lease, "no new iteration for too long") for lease in telemetry.stalled(now))
    released = marketplace.release_ended()
    late = verification.late(now)
    for lease in late:
        verification.reject_late(lease)
    forgotten = verification.forget_states(now)
    explained = marketplace.explain_waiting()
    alerted = alerts.look(now)
    if delivery.waiting(now):
        conveyor.ring_for("deliver")
    done = Swept(_ring(now), silent, released, len(late), forgotten, explained, alerted)
    if silent or released or late or forgotten:
        log.info("swept: %s", done)
    return done


def _ring(now: datetime) -> int:
    """Ring for jobs and disputes that wait for a task, are in nobody's hands, and were not rung lately."""
    unclaimed = Q(claimed_until=None) | Q(claimed_until__lt=now)
    quiet = Q(rung_at=None) | Q(rung_at__lt=now - timedelta(seconds=settings.LABAPEX.ring_seconds))
    waiting = Job.objects.filter(unclaimed, quiet, state__in=[state.value for state in conveyor.STAGES])
    # A challenged job waits for its worker as long as something is asked for.
    waiting = waiting.exclude(state=JobState.CHALLENGED.value, leases__challenge__waiting=True)
    rung = 0
    for job_id, state in waiting.order_by("state_changed_at").values_list("pk", "state")[:_AT_ONCE]:
        if not conveyor.ring(job_id, JobState(state)):
            break  # the broker is away: the next round tries again
        rung += 1
    for dispute_id in Dispute.objects.filter(unclaimed, quiet, state=OPEN).values_list("pk", flat=True)[:_AT_ONCE]:
        if not conveyor.ring_dispute(dispute_id):
            break
        rung += 1
    return rung


def forget_claims() -> int:
    """For the one process of the embedded pipeline, when it starts: whoever held a claim is dead."""
    free = {"claimed_by": "", "claimed_until": None, "rung_at": None}
    return sum(model.objects.exclude(claimed_until=None, rung_at=None).update(**free) for model in (Job, Dispute))
