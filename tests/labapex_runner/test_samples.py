"""Samples: what the device says, and nothing where it says nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.nvml import traces
from tests.nvml.stub import Play

from labapex.protocol.contract import Environment
from labapex.protocol.records import Sample
from labapex_runner.samples import CpuMeter, GpuMeter, meter

ROOT = Path(__file__).parents[2]
READ = """
from labapex_runner.samples import GpuMeter
meter = GpuMeter()
sample = meter.read()
print(sample.model_dump_json() if sample else meter.complaint)
"""


def read_elsewhere(library: Path, **variables: str) -> str:
    """What the meter says in a process that finds its driver as the runner does."""
    roots = os.pathsep.join(str(ROOT / name) for name in ("client_sdk", "worker_agent"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": roots, "LD_LIBRARY_PATH": str(library), **variables}
    return subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_gpu_is_read_through_nvml(nvml_library: Path) -> None:
    sample = Sample.model_validate_json(read_elsewhere(nvml_library.parent))
    assert (sample.source, sample.device) == ("nvml", "Stub GPU")
    assert (sample.utilisation, sample.memory, sample.memory_total) == (41.0, 600, 1000)


def test_a_sample_has_power_heat_clock_and_what_holds_it_down(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", traces.UUID)
    play(traces.throttled(1))
    sample = GpuMeter().read()
    assert sample is not None
    assert (sample.power, sample.temperature, sample.clock) == (700.0, 88, 1230)
    assert sample.throttled == ("power-cap", "thermal")
    assert sample.uuid == traces.UUID


@pytest.mark.parametrize(("visible", "utilisation"), [("2,0", 43.0), ("GPU-stub-1", 42.0)])
def test_the_gpu_that_cuda_shows_to_the_script_is_the_one_that_is_read(
    play: Play, monkeypatch: pytest.MonkeyPatch, visible: str, utilisation: float
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    play("gpus 3\n")
    sample = GpuMeter().read()
    assert sample is not None
    assert sample.utilisation == utilisation


@pytest.mark.parametrize("call", ["init", "handle", "utilisation", "memory", "name"])
def test_a_gpu_that_fails_gives_no_figures_but_a_reason(play: Play, call: str) -> None:
    play(f"fail {call} 15\n")
    meter = GpuMeter()
    assert meter.read() is None
    assert (meter.complaint or "").startswith("no GPU figures: GPU is lost")


def test_a_device_that_tells_no_utilisation_gives_no_invented_one(play: Play) -> None:
    play("fail utilisation 3\n")
    meter = GpuMeter()
    assert meter.read() is None
    assert meter.complaint is not None


def test_a_gpu_that_comes_back_is_read_again(play: Play) -> None:
    play(traces.trace(["util 5\n", "fail utilisation 10\n", "fail utilisation 0\nutil 7\n"], before=""))
    meter = GpuMeter()
    readings = [meter.read() for _ in range(3)]
    assert [None if sample is None else sample.utilisation for sample in readings] == [5.0, None, 7.0]
    assert meter.complaint is None


def test_a_host_without_driver_gives_no_gpu_figures(tmp_path: Path) -> None:
    said = read_elsewhere(tmp_path)
    assert "no NVIDIA driver is installed" in said


def test_the_meter_is_chosen_by_the_device_that_trains() -> None:
    host = Environment(python="3.11", torch="2", device="cpu: a CPU", capability="AVX2", threads=2)
    assert isinstance(meter(host, 2, os.getpid()), CpuMeter)
    gpu = host.model_copy(update={"device": "cuda: NVIDIA H200"})
    assert isinstance(meter(gpu, 2, os.getpid()), GpuMeter)


def test_a_cpu_is_read_as_such_and_a_rate_needs_two_readings() -> None:
    reader = CpuMeter("cpu: a CPU", 1, os.getpid())
    assert reader.read() is None
    began = time.process_time()
    while time.process_time() < began + 0.05:  # several ticks of the kernel's clock
        sum(i * i for i in range(1000))
    sample = reader.read()
    assert sample is not None
    assert (sample.source, sample.device) == ("cpu", "cpu: a CPU")
    assert 0 < sample.utilisation <= 100
    assert 0 < sample.memory < sample.memory_total


def test_a_job_that_has_ended_gives_no_cpu_figures_but_a_reason() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    reader = CpuMeter("cpu: a CPU", 1, child.pid)
    assert reader.read() is None
    assert reader.complaint is not None
    assert reader.complaint.startswith("no CPU figures: ")
