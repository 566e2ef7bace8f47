"""What the NVIDIA driver says, and what each of its refusals means. Played by a stub through the real pynvml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex import nvml
from labapex.nvml import Driver, DriverProblem, GpuLost, NoDriver


def test_a_gpu_is_described_in_full(play: Play) -> None:
    play(traces.H200)
    (device,) = Driver().devices()
    assert (device.kind, device.name, device.uuid) == ("cuda", "NVIDIA H200", traces.UUID)
    assert (device.memory, device.driver, device.cuda) == (141 << 30, "580.95.05", "13.0")
    assert (device.capability, device.mig, device.ecc, device.power_limit) == ("9.0", False, True, 700.0)
    assert device.usable
    assert device.note == ""


def test_every_gpu_of_a_host_is_named(play: Play) -> None:
    play(traces.H200 + "gpus 3\n")
    assert [device.uuid for device in Driver().devices()] == [traces.UUID, f"{traces.UUID}-1", f"{traces.UUID}-2"]


@pytest.mark.parametrize("code", [3, 4, 13], ids=["not-supported", "no-permission", "function-not-found"])
def test_what_a_device_does_not_tell_is_left_out_and_nothing_else(play: Play, code: int) -> None:
    calls = ("memory", "capability", "mig", "ecc", "limit", "driver", "cuda")
    play(traces.H200 + "".join(f"fail {call} {code}\n" for call in calls))
    (device,) = Driver().devices()
    told = (device.memory, device.capability, device.mig, device.ecc, device.power_limit, device.driver, device.cuda)
    assert told == (None,) * 7
    assert device.name == "NVIDIA H200"
    assert device.usable


def test_a_device_without_uuid_gets_no_job(play: Play) -> None:
    play(traces.H200 + "fail uuid 3\n")
    (device,) = Driver().devices()
    assert not device.usable
    assert "UUID" in device.note


def test_a_device_in_mig_mode_gets_no_job_and_says_what_to_do(play: Play) -> None:
    play(traces.H200 + "mig 1\n")
    (device,) = Driver().devices()
    assert device.mig
    assert not device.usable
    assert f"nvidia-smi -i {traces.UUID} -mig 0" in device.note


@pytest.mark.parametrize("call", ["handle", "name", "memory", "uuid"])
def test_a_lost_gpu_is_still_listed_as_what_it_is(play: Play, call: str) -> None:
    play(traces.H200 + f"fail {call} 15\n")
    (device,) = Driver().devices()
    assert (device.name, device.usable) == ("GPU 0", False)
    assert "GPU is lost" in device.note


def test_a_reading_has_power_heat_clock_and_what_holds_it_down(play: Play) -> None:
    play(traces.throttled(1))
    reading = Driver().read(traces.UUID)
    assert (reading.utilisation, reading.power, reading.temperature, reading.clock) == (97.0, 700.0, 88, 1230)
    assert reading.throttled == ("power-cap", "thermal")


def test_figures_that_a_device_has_not_got_are_left_out_of_a_reading(play: Play) -> None:
    play(
        traces.H200
        + "".join(f"fail {call} 3\n" for call in ("power", "temperature", "old-temperature", "clock", "reasons"))
    )
    reading = Driver().read(0)
    assert (reading.power, reading.temperature, reading.clock, reading.throttled) == (None, None, None, ())
    assert reading.memory_total == 141 << 30


def test_an_older_driver_is_asked_by_the_older_name(play: Play) -> None:
    play(traces.H200 + "fail temperature 13\n")
    assert Driver().read(0).temperature == 31


def test_readings_follow_the_trace_and_stay_at_its_end(play: Play) -> None:
    play(traces.trace(["util 10\n", "util 20\n"]))
    driver = Driver()
    assert [driver.read(0).utilisation for _ in range(4)] == [10, 20, 20, 20]


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (1, DriverProblem, "closed while it was asked"),
        (4, DriverProblem, "refuses this user"),
        (9, NoDriver, "modprobe nvidia"),
        (10, DriverProblem, "did not answer in time"),
        (15, GpuLost, "GPU is lost"),
        (16, GpuLost, "must be reset"),
        (18, DriverProblem, "restart the host"),
        (999, DriverProblem, "the NVIDIA driver says"),
    ],
)
def test_each_error_is_told_by_its_name_and_what_to_do(
    play: Play, code: int, kind: type[DriverProblem], word: str
) -> None:
    play(traces.H200 + f"fail init {code}\n")
    with pytest.raises(kind, match=word):
        Driver().read(0)


def test_a_host_without_driver_has_no_library(tmp_path: Path) -> None:
    line = "from labapex.nvml import Driver; Driver().devices()"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    if subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout.count(
        "libnvidia-ml.so.1"
    ):
        pytest.skip("this machine has an NVIDIA driver; the test needs one without")
    ended = subprocess.run([sys.executable, "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert "NoDriver: no NVIDIA driver is installed" in ended.stderr


def test_a_driver_that_was_closed_by_somebody_else_is_opened_again(play: Play) -> None:
    play(traces.trace(["util 10\n", "fail utilisation 1\n", "fail utilisation 0\nutil 30\n"]))
    driver = Driver()
    assert driver.read(0).utilisation == 10
    assert driver.read(0).utilisation == 30


def test_a_gpu_that_is_lost_in_mid_run_is_told_apart_from_one_that_is_slow_to_answer(play: Play) -> None:
    play(traces.lost(after=2))
    driver = Driver()
    driver.read(0), driver.read(0)
    with pytest.raises(GpuLost):
        driver.read(0)


def test_processes_are_told_with_what_they_take(play: Play) -> None:
    play(traces.H200 + "process 10 1000 60\nprocess 11 500 0\nutil 60\n")
    told = Driver().processes(0)
    assert told is not None
    assert [(each.pid, each.memory, each.utilisation) for each in told[0]] == [(10, 1000, 60.0), (11, 500, 0.0)]


def test_a_device_that_no_process_used_lately_has_none_that_do_anything(play: Play) -> None:
    play(traces.H200 + "process 10 1000 0\n")
    told = Driver().processes(0)
    assert told is not None
    assert [each.utilisation for each in told[0]] == [0.0]


def test_samples_of_processes_are_counted_once(play: Play) -> None:
    play(traces.H200 + "process 10 1000 60\n")
    driver = Driver()
    told = driver.processes(0)
    assert told is not None
    again = driver.processes(0, told[1])
    assert again is not None
    assert [each.utilisation for each in again[0]] == [0.0]


@pytest.mark.parametrize("call", ["processes", "process-utilisation"])
@pytest.mark.parametrize("code", [3, 4], ids=["not-supported", "no-permission"])
def test_a_driver_that_does_not_tell_whose_load_it_is_is_not_guessed_at(play: Play, call: str, code: int) -> None:
    play(traces.H200 + f"process 10 1000 60\nfail {call} {code}\n")
    assert Driver().processes(0) is None


@given(st.integers(0, 2**64 - 1))
def test_every_mask_of_reasons_has_words_and_each_bit_its_own(mask: int) -> None:
    words = nvml.throttled(mask)
    assert len(set(words)) == len(words)
    assert bool(words) == bool(mask)
    assert len(words) >= (mask & 0x7FF).bit_count()


def test_the_bits_are_nvmls() -> None:
    assert nvml.throttled(pynvml.nvmlClocksEventReasonSwPowerCap) == ("power-cap",)
    assert nvml.throttled(pynvml.nvmlClocksEventReasonHwThermalSlowdown) == ("hardware-thermal",)
    assert nvml.throttled(pynvml.nvmlClocksEventReasonNone) == ()
