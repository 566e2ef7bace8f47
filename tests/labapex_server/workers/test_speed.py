"""Who has to show his speed, when, what is kept of it, and who is slower than others of his name."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command
from tests.labapex_server.gateway.stage import Host, a_host, a_runner, queued_job

from labapex.protocol.devices import Device
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.lib import clock
from labapex_server.marketplace import services as marketplace
from labapex_server.workers import services, speed
from labapex_server.workers.models import SpeedTrial, Worker

CPU = Device(kind="cpu", name="a CPU")
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1")
SHOWN = speed.Shown(speed.Plan(64, 5), uuid4(), bytes(32), b"", seconds=2.0, attempts=(2.1, 2.0, 1.9))


@pytest.fixture(autouse=True)
def _settings(settings: Any, home: Path, tmp_path: Path, db: None) -> None:
    a_runner(settings, tmp_path / "runner")
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"trial_hours": 24})


@pytest.fixture
def worker(host: User) -> Worker:
    return a_host(host).worker


def again(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


def test_a_new_worker_has_to_show_its_speed_and_then_not_for_a_while(worker: Worker) -> None:
    assert speed.due(worker) == speed.CPU_PLAN
    speed.passed(worker, SHOWN)
    assert speed.due(worker) is None
    Worker.objects.filter(pk=worker.pk).update(next_trial_at=clock.now() - timedelta(seconds=1))
    assert speed.due(worker) is not None


def test_when_it_has_to_show_it_again_is_random_within_bounds(worker: Worker) -> None:
    waits = set()
    for _ in range(8):
        speed.passed(worker, SHOWN)
        wait = (again(worker).next_trial_at or clock.now()) - clock.now()
        assert timedelta(hours=11.9) < wait < timedelta(hours=36.1)
        waits.add(wait)
    assert len(waits) == 8


def test_a_platform_may_do_without(worker: Worker, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"trial_hours": 0})
    assert speed.due(worker) is None


def test_a_host_is_asked_what_suits_the_devices_that_it_claims() -> None:
    assert speed.plan([CPU]) == speed.CPU_PLAN
    assert speed.plan([GPU]) == speed.GPU_PLAN
    assert speed.plan([GPU.model_copy(update={"usable": False}), CPU]) == speed.CPU_PLAN


def test_the_speed_is_the_work_over_the_time_of_the_answer_that_was_checked(worker: Worker) -> None:
    speed.passed(worker, SHOWN)
    assert again(worker).speed == pytest.approx(2 * 64**3 * 5 / 2.0 / 1e9)
    assert SpeedTrial.objects.get().attempts == [2.1, 2.0, 1.9]


def test_a_failed_trial_takes_back_what_was_shown_before_and_is_repeated_soon(worker: Worker) -> None:
    speed.passed(worker, SHOWN)
    speed.failed(worker, SHOWN.plan, "it did not answer in time")
    assert again(worker).speed is None
    assert (again(worker).next_trial_at or clock.now()) < clock.now() + timedelta(hours=1.1)


def test_a_host_with_other_devices_has_to_show_its_speed_anew(worker: Worker) -> None:
    services.arrived(worker, [CPU], lacks_torch=False)
    worker.refresh_from_db()
    speed.passed(worker, SHOWN)
    services.arrived(worker, [CPU], lacks_torch=False)
    assert speed.due(worker) is None
    services.arrived(worker, [GPU], lacks_torch=False)
    assert speed.due(worker) == speed.GPU_PLAN
    assert again(worker).speed is None


def fleet(host: User, *speeds: float) -> list[Worker]:
    made = [a_host(host, f"rig-{number}").worker for number in range(len(speeds))]
    for each, shown in zip(made, speeds, strict=True):
        Worker.objects.filter(pk=each.pk).update(speed=shown, devices=[GPU.model_dump(mode="json")])
    return made


def test_a_device_much_slower_than_the_others_of_its_name_is_suspicious(host: User) -> None:
    made = fleet(host, 400_000, 410_000, 390_000, 90_000)
    (found,) = speed.suspicions()
    assert found.worker.pk == made[3].pk
    assert str(found) == (
        "it claims cuda: NVIDIA H200 and showed 90,000 GFLOP/s; the median of 3 others of that name is 400,000"
    )
    out = io.StringIO()
    call_command("speeds", stdout=out)
    assert [line.count("SUSPICIOUS") for line in out.getvalue().splitlines()] == [0, 0, 0, 1]


def test_with_too_few_others_to_compare_with_nobody_is_suspected(host: User) -> None:
    fleet(host, 400_000, 410_000, 90_000)
    assert speed.suspicions() == []


def test_a_job_that_asks_for_speed_goes_to_a_worker_that_showed_it(host: User, researcher: User) -> None:
    slow, fast = a_host(host, "slow"), a_host(host, "fast")
    Worker.objects.filter(pk=slow.worker.pk).update(speed=90.0)
    Worker.objects.filter(pk=fast.worker.pk).update(speed=110.0)
    job = queued_job(researcher)
    Job.objects.filter(pk=job.pk).update(spec={**job.spec, "min_speed": 100.0})
    unmeasured = a_host(host, "new")
    assert taken(unmeasured) is None
    assert taken(slow) is None
    assert taken(fast) == job.pk


def test_a_job_that_asks_for_no_speed_goes_to_any_worker(host: User, researcher: User) -> None:
    job = queued_job(researcher)
    assert taken(a_host(host)) == job.pk


def taken(host: Host) -> Any:
    granted = marketplace.lease(host.worker)
    return None if granted is None else granted[0].job_id
