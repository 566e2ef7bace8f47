"""What a host says it has, and whose processes load it. The driver is played by a stub."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex import nvml
from labapex.protocol.devices import Device
from labapex_worker import devices

BROKEN = pytest.mark.parametrize(
    ("code", "word"),
    [(9, "modprobe nvidia"), (4, "refuses this user"), (10, "in time")],
    ids=["absent", "refused", "slow"],
)


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not asked the driver yet."""
    monkeypatch.setattr(devices, "_driver", nvml.Driver())
    monkeypatch.setattr(devices, "_seen", {})


def only(play: Play, trace: str) -> Device:
    play(trace)
    (device,) = devices.find()
    return device


def child(play: Play, before: str = "") -> tuple[subprocess.Popen[bytes], Device]:
    """A process that uses 60 % of the GPU, beside this one, which uses 10 %."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    rows = f"process {process.pid} 3000 60\nprocess {os.getpid()} 500 10\n"
    return process, only(play, traces.H200 + rows + before)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@BROKEN
def test_a_host_whose_driver_does_not_answer_is_a_cpu_worker_and_says_why(play: Play, code: int, word: str) -> None:
    device = only(play, traces.H200 + f"fail init {code}\n")
    assert device.kind == "cpu"
    assert word in device.note
    assert "samples are the CPU's" in device.note
    assert devices.gpus() == ()
    assert devices.readings(device) is None


def test_jobs_see_the_gpus_that_can_be_used(play: Play) -> None:
    play(traces.H200 + "gpus 2\n")
    assert devices.visible()["CUDA_VISIBLE_DEVICES"] == f"{traces.UUID},{traces.UUID}-1"


def test_a_gpu_in_mig_mode_is_shown_and_gets_no_job_and_the_host_is_a_cpu_worker(play: Play) -> None:
    play(traces.H200 + "mig 1\n")
    gpu, cpu = devices.find()
    assert (gpu.kind, gpu.usable, cpu.kind, cpu.usable) == ("cuda", False, "cpu", True)
    assert devices.visible()["CUDA_VISIBLE_DEVICES"] == ""


def test_a_host_without_gpu_hides_nothing_from_a_job(play: Play) -> None:
    play("fail init 9\n")
    assert devices.visible() == {}


def test_a_reading_tells_ours_from_foreign_by_the_tree_of_processes(play: Play) -> None:
    process, device = child(play)
    try:
        here = devices.readings(device, [process.pid])
        assert here is not None
        assert here.ours == devices.Load(60.0, 3000, 1)
        assert here.foreign == devices.Load(10.0, 500, 1)
    finally:
        end(process)


def test_descendants_of_ours_are_ours(play: Play) -> None:
    process, device = child(play)
    try:
        here = devices.readings(device, [os.getpid()])
        assert here is not None
        assert here.ours == devices.Load(70.0, 3500, 2)
        assert here.foreign == devices.Load(0.0, 0, 0)
    finally:
        end(process)


def test_without_any_of_ours_every_process_is_foreign(play: Play) -> None:
    process, device = child(play)
    try:
        here = devices.readings(device)
        assert here is not None
        assert here.foreign == devices.Load(70.0, 3500, 2)
    finally:
        end(process)


@pytest.mark.parametrize("code", [3, 4], ids=["not-supported", "no-permission"])
def test_whose_load_it_is_stays_open_where_the_driver_does_not_tell(play: Play, code: int) -> None:
    process, device = child(play, f"fail processes {code}\nutil 55\n")
    try:
        here = devices.readings(device)
        assert here is not None
        assert (here.utilisation, here.ours, here.foreign) == (55.0, None, None)
    finally:
        end(process)


def test_whose_load_it_is_stays_open_where_a_process_cannot_be_seen(play: Play) -> None:
    here = devices.readings(only(play, traces.H200 + "process 4194304 3000 60\n"))  # above the kernel's highest pid
    assert here is not None
    assert (here.ours, here.foreign) == (None, None)


def test_a_lost_gpu_gives_no_reading_and_is_told_by_its_name(play: Play) -> None:
    device = only(play, traces.lost(after=1))
    assert devices.readings(device) is not None
    assert devices.readings(device) is None
    with pytest.raises(nvml.GpuLost):
        devices.look(device)
