"""The agents' own readings: kept beside the log of a lease that runs, and of no other."""

from __future__ import annotations

import pytest
from tests.labapex_server.gateway.stage import Run, a_host

from labapex.protocol.devices import Observation
from labapex.protocol.frames import Observed
from labapex.protocol.states import LeaseState
from labapex_server.accounts.models import User
from labapex_server.lib import clock
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import models, services


def report(run: Run, *at: float) -> Observed:
    reading = Observation(at=0, device="GPU-1", utilisation=90, memory=1000, job_utilisation=88.5, others=2)
    return Observed(
        lease=run.lease.pk, readings=tuple(reading.model_copy(update={"at": each}) for each in at or (5.0,))
    )


def test_readings_come_back_as_they_were_sent_in_the_order_of_their_clock(run: Run) -> None:
    worker = run.host.worker.pk
    assert services.observe(worker, report(run, 7.0, 8.0))
    assert services.observe(worker, report(run, 5.0))
    found = services.observations(run.lease)
    assert [reading.at for reading in found] == [5.0, 7.0, 8.0]
    assert (found[0].job_utilisation, found[0].others, found[0].other_memory) == (88.5, 2, None)


def test_another_workers_lease_is_not_reported_on(run: Run, host: User) -> None:
    assert not services.observe(a_host(host, "other").worker.pk, report(run))
    assert services.observations(run.lease) == []


@pytest.mark.parametrize("state", [LeaseState.FAILED, LeaseState.SETTLED, LeaseState.GRANTED])
def test_a_lease_that_does_not_run_is_not_reported_on(run: Run, state: LeaseState) -> None:
    Lease.objects.filter(pk=run.lease.pk).update(state=state.value)
    assert not services.observe(run.host.worker.pk, report(run))


def test_a_flood_of_reports_is_dropped_and_ends_nothing(run: Run) -> None:
    Lease.objects.filter(pk=run.lease.pk).update(key_released_at=clock.now())
    kept = [services.observe(run.host.worker.pk, report(run)) for _ in range(40)]
    assert kept[:20] == [True] * 20
    assert not kept[-1]
    assert models.Observed.objects.count() == sum(kept)
    assert Lease.objects.get(pk=run.lease.pk).state == LeaseState.RUNNING.value
