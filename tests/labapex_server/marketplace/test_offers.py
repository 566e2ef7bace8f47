from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.labapex_server.gateway.stage import Host, a_host, a_runner, key_request, queued_job

from labapex.protocol.api import Offer, OfferOrder
from labapex.protocol.devices import Device
from labapex.protocol.hours import Hours
from labapex.protocol.limits import Limits
from labapex.protocol.spec import CREDIT, Constraints
from labapex.protocol.states import JobState
from labapex_server.accounts.models import User
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace import offers
from labapex_server.marketplace import services as marketplace
from labapex_server.workers import services as workers
from labapex_server.workers.models import Finding, Worker

pytestmark = pytest.mark.django_db


def gpu(name: str, memory: int | None = 24 * 10**9) -> Device:
    return Device(kind="cuda", name=name, uuid="GPU-1f6e2c34", memory=memory, driver="580.95.05")


def connected(owner: User, name: str, *devices: Device, price: int = CREDIT, speed: float | None = None) -> Host:
    """A host whose agent has just said what it has, and that it wants work."""
    made = a_host(owner, name)
    workers.arrived(made.worker, devices or (gpu("NVIDIA RTX 4090"),), lacks_torch=False)
    workers.ready(made.worker, price)
    Worker.objects.filter(pk=made.worker.pk).update(speed=speed)
    return made


def listed(order: OfferOrder = OfferOrder.PRICE, **wanted: Any) -> list[str]:
    return [offer.name for offer in offers.find(Constraints.model_validate(wanted), order).offers]


def lacking(**wanted: Any) -> str | None:
    return offers.find(Constraints.model_validate(wanted), OfferOrder.PRICE).lacking


@pytest.fixture
def runner(settings: Any, tmp_path: Path) -> None:
    a_runner(settings, tmp_path / "runner")


@pytest.fixture
def three(host: User) -> None:
    connected(host, "small", gpu("NVIDIA RTX 4090"), price=CREDIT, speed=80_000.0)
    connected(host, "large", gpu("NVIDIA H200", 141 * 10**9), price=3 * CREDIT, speed=400_000.0)
    connected(host, "cheap", Device(kind="cpu", name="AMD EPYC", memory=64 * 10**9), price=CREDIT // 10)


# -- the list ----------------------------------------------------------------------------------------------------------


def test_offers_are_those_that_meet_every_constraint(three: None) -> None:
    for wanted, fit in (
        ({}, ["cheap", "small", "large"]),
        ({"device": "h200"}, ["large"]),
        ({"device": "cuda:"}, ["small", "large"]),
        ({"min_memory": 24}, ["cheap", "small", "large"]),
        ({"min_memory": "24.1 GB"}, ["cheap", "large"]),
        ({"max_price": "1"}, ["cheap", "small"]),
        ({"min_speed": 80_000}, ["small", "large"]),
        ({"device": "cuda", "max_price": "2.5"}, ["small"]),
        ({"device": "cpu", "min_speed": 1}, []),
    ):
        assert listed(**wanted) == fit, wanted


def test_the_best_offer_comes_first(three: None) -> None:
    assert listed(OfferOrder.PRICE) == ["cheap", "small", "large"]
    assert listed(OfferOrder.VALUE) == listed(OfferOrder.SPEED) == ["large", "small", "cheap"]


def test_where_there_is_none_it_is_said_what_no_host_has(three: None) -> None:
    for wanted, words in (
        ({"device": "H100"}, "no host with a device named 'H100'; 3 hosts have others"),
        ({"min_memory": 192}, "no host with 192 GB; 3 hosts have less"),
        ({"device": "4090", "min_memory": 48}, "no host with 48 GB; 1 host has less"),
        ({"max_price": "0.05"}, "no host for 0.05 credits an hour; the cheapest asks 0.1"),
        ({"min_speed": 1e6}, "no host that has shown 1,000,000 GFLOP/s; the fastest has shown 400,000"),
        (
            {"device": "cuda", "max_price": "2", "min_speed": 100_000},
            "no host that has shown 100,000 GFLOP/s; the fastest has shown 80,000",
        ),
        ({"device": "cuda"}, None),
    ):
        assert lacking(**wanted) == words


def test_only_hosts_to_which_a_job_could_go_are_listed(host: User, cheat: User) -> None:
    assert lacking() == "no host is connected"
    silent, banned, bare = (connected(host, name) for name in ("silent", "banned", "bare"))
    connected(host, "broken", gpu("NVIDIA A100").model_copy(update={"usable": False}))
    connected(cheat, "closed")
    cheat.is_active = False
    cheat.save()
    Worker.objects.filter(pk=silent.worker.pk).update(last_seen_at=clock.now() - timedelta(hours=1))
    Worker.objects.filter(pk=banned.worker.pk).update(banned=True)
    Worker.objects.filter(pk=bare.worker.pk).update(lacks_torch=True)  # and the platform supplies none
    assert listed() == []
    workers.seen(silent.worker)
    assert listed() == ["silent"]


def test_an_offer_says_what_its_host_has_and_nothing_of_its_owner(host: User) -> None:
    host.email = "owner@example.org"
    host.save()
    device = gpu("NVIDIA H200", 141 * 10**9)
    made = connected(host, "basement", device, device, gpu("NVIDIA T4"), speed=400_000.0)
    room, night = Limits(memory=8 << 30, disk=1 << 40, processes=512), Hours(begin=22 * 60, end=7 * 60)
    workers.ready(made.worker, None, room, [night])
    workers.paused(made.worker, "its owner plays chess on it")
    (offer,) = offers.find(Constraints(), OfferOrder.PRICE).offers
    assert offer == Offer(
        id=made.worker.pk, name="basement", device="cuda: NVIDIA H200", devices=2, memory=141 * 10**9, room=room, hours=(night,),
        price_per_hour=CREDIT, speed=400_000.0, reputation=0, record="new: nothing of it was judged yet", verified=0,
        reliability=1.0, free=False,
    )  # fmt: skip
    shown = offer.model_dump_json()
    for secret in (host.username, host.email, bytes(made.worker.public_key).hex(), device.uuid, device.driver, "chess"):
        assert str(secret) not in shown


def test_the_best_reputation_comes_first_and_of_equal_ones_who_has_done_more(three: None, host: User) -> None:
    found = {"small": [Finding.VERIFIED] * 11, "large": [Finding.VERIFIED] * 10, "cheap": [Finding.FALSE]}
    for worker in Worker.objects.all():
        for finding in found[worker.name]:
            workers.mark(worker, finding, reason="")
    assert listed(OfferOrder.REPUTATION) == ["small", "large", "cheap"]
    first, *_, last = offers.find(Constraints(), OfferOrder.REPUTATION).offers
    assert (first.reputation, first.verified, first.reliability) == (100, 11, 1.0)
    assert (last.reputation, last.record) == (0, "0 verified in a row, trusted after 10; 1 proven false")


# -- which job goes where ----------------------------------------------------------------------------------------------


def test_a_job_goes_to_a_host_that_meets_its_constraints_and_waits_for_none_other(
    runner: None, three: None, researcher: User
) -> None:
    job = queued_job(researcher, device="h200", min_memory=100, max_price="3", budget="10")
    hosts = {worker.name: worker for worker in Worker.objects.all()}
    assert marketplace.lease(hosts["small"]) is None
    assert marketplace.lease(hosts["cheap"]) is None
    workers.ready(hosts["large"], 3 * CREDIT + 1)
    assert marketplace.lease(hosts["large"]) is None
    workers.ready(hosts["large"], 3 * CREDIT)
    granted = marketplace.lease(hosts["large"])
    assert granted is not None
    assert granted[0].job_id == job.pk


def test_a_host_that_claims_another_device_than_its_executable_finds_gets_no_keys_and_not_that_job_again(
    runner: None, cheat: User, researcher: User
) -> None:
    liar = connected(cheat, "liar", gpu("NVIDIA H100 80GB HBM3"))
    job = queued_job(researcher, device="h100")
    granted = marketplace.lease(liar.worker)
    assert granted is not None
    with pytest.raises(Conflict, match="asks for a device named 'h100', and its executable found cpu: test"):
        marketplace.release_keys(granted[0], request=key_request(granted[0])[0])
    job.refresh_from_db()
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)
    assert job.reason == "waits for a worker with a device named 'h100'; the one of liar turned out to be cpu: test"
    assert marketplace.lease(liar.worker) is None
    assert (listed(device="h100"), listed(device="cpu")) == ([], ["liar"])


def test_jobs_that_nobody_can_take_do_not_keep_others_waiting(runner: None, three: None, researcher: User) -> None:
    for _ in range(21):
        queued_job(researcher, device="TPU")
    job = queued_job(researcher)
    granted = marketplace.lease(Worker.objects.get(name="cheap"))
    assert granted is not None
    assert granted[0].job_id == job.pk


def test_a_job_that_waits_says_why_until_a_host_may_take_it(runner: None, host: User, researcher: User) -> None:
    picky = queued_job(researcher, min_memory=24, budget="0.001")

    def said() -> str:
        marketplace.explain_waiting()
        return Job.objects.get(pk=picky.pk).reason

    assert said() == "waits for a worker; no host is connected"
    version = Job.objects.get(pk=picky.pk).version
    assert marketplace.explain_waiting() == 0
    assert Job.objects.get(pk=picky.pk).version == version
    connected(host, "small", gpu("NVIDIA T4", 16 * 10**9))
    assert said() == "waits for a worker; no host with 24 GB; 1 host has less"
    large = connected(host, "large", gpu("NVIDIA L40S", 48 * 10**9), price=100 * CREDIT)
    least = "waits for a worker; no host for its budget of 0.001 credits; the cheapest that fits takes 0.003889"
    assert said() == least
    workers.ready(large.worker, CREDIT, Limits(memory=1 << 30, disk=1 << 40, processes=8))
    assert said() == "waits for a worker; no host that fits has the memory and processes that it asks for"
    workers.ready(large.worker, CREDIT)
    assert said() == "waits for a worker"
    workers.paused(large.worker, "outside of its hours")
    assert said() == "waits for a worker; the host that fits is busy"
    workers.ready(large.worker, CREDIT)
    assert marketplace.lease(large.worker) is not None
    marketplace.explain_waiting()
    assert Job.objects.get(pk=picky.pk).reason == "given to large"


def test_what_is_said_of_a_job_that_was_taken_meanwhile_is_not_written(rig: Host, researcher: User) -> None:
    job = queued_job(researcher)
    before = Job.objects.get(pk=job.pk)
    assert marketplace.lease(rig.worker) is not None
    assert not jobs.say(before, "no host is connected")
    assert Job.objects.get(pk=job.pk).reason == "given to rig"
