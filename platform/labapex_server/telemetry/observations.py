"""The agents' own readings of the GPU, beside those in the log. They may be missing; they never hold anything up."""

from __future__ import annotations

import logging
from uuid import UUID

from labapex.protocol.devices import Observation
from labapex.protocol.frames import Observed as Report
from labapex.protocol.states import LeaseState
from labapex_server.lib import clock
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Observed

log = logging.getLogger(__name__)

SECONDS_A_REPORT = 5.0
FREE_REPORTS = 20
"""What an honest agent stays under: a report every ten seconds, and one more for each break of its line."""


def observe(worker: UUID, report: Report) -> bool:
    """Keep a report on a lease of this worker that runs, or has just ended. False: it was dropped, as one too many is."""
    states = (LeaseState.RUNNING.value, LeaseState.FINISHED.value)
    lease = Lease.objects.filter(pk=report.lease, worker=worker, state__in=states).first()
    if lease is None or lease.key_released_at is None:
        return False
    now = clock.now()
    allowed = FREE_REPORTS + (now - lease.key_released_at).total_seconds() / SECONDS_A_REPORT
    if Observed.objects.filter(lease=lease).count() >= allowed:
        log.warning("lease %s: more reports of its device than time has passed; dropped", lease.pk)
        return False
    readings = [reading.model_dump(mode="json", exclude_defaults=True) for reading in report.readings]
    Observed.objects.create(lease=lease, readings=readings, received_at=now.timestamp())
    return True


def observations(lease: Lease) -> list[Observation]:
    """Every reading of a lease's agent, in the order of its own clock."""
    rows = Observed.objects.filter(lease=lease).order_by("pk").values_list("readings", flat=True)
    found = [Observation.model_validate(reading) for readings in rows.iterator(chunk_size=500) for reading in readings]
    return sorted(found, key=lambda reading: reading.at)
