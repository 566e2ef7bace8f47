"""What limits are held against, as a driver played by a stub tells it."""

from __future__ import annotations

import os

import pytest
from tests.nvml.stub import Play

from labapex import nvml
from labapex_worker import devices, readings


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not asked the driver yet."""
    monkeypatch.setattr(devices, "_driver", nvml.Driver())
    monkeypatch.setattr(devices, "_seen", {})


def test_power_and_temperature_are_the_drivers(play: Play) -> None:
    play("power 412000\ntemperature 83\n")
    found = readings.read(devices.find(), ours=())
    assert (found.power_watts, found.temperature) == (412.0, 83)


def test_a_gpu_that_does_not_tell_its_temperature_has_none(play: Play) -> None:
    play("fail temperature 3\nfail old-temperature 3\n")
    found = readings.read(devices.find(), ours=())
    assert (found.power_watts, found.temperature) == (350.0, None)


def test_a_driver_that_fails_tells_nothing(play: Play) -> None:
    play("next\nfail all 15\n")
    (device,) = devices.find()
    play("fail all 15\n")
    found = readings.read([device], ours=())
    assert (found.power_watts, found.temperature, found.others) == (None, None, None)


def test_processes_on_the_gpu_are_others_unless_they_descend_from_ours(play: Play) -> None:
    play(f"process {os.getpid()} 500 10\n")
    found = devices.find()
    assert readings.read(found, ours=()).others == 1
    assert readings.read(found, ours=(os.getppid(),)).others == 0


def test_the_load_of_the_host_says_nothing_while_a_job_of_ours_runs() -> None:
    assert readings.read((), ours=()).load == pytest.approx(os.getloadavg()[0] / (os.cpu_count() or 1), abs=0.5)
    assert readings.read((), ours=(1,)).load is None
