"""Samples: what the device says, and nothing where it says nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of libnvidia-ml")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", source], check=True)
    return folder


def read(stub: Path, **variables: str) -> str:
    roots = os.pathsep.join(str(ROOT / name) for name in ("client_sdk", "worker_agent"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": roots, "LD_LIBRARY_PATH": str(stub), **variables}
    return subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_gpu_is_read_through_nvml(stub: Path) -> None:
    sample = Sample.model_validate_json(read(stub))
    assert (sample.source, sample.device) == ("nvml", "Stub GPU")
    assert (sample.utilisation, sample.memory, sample.memory_total) == (41.0, 600, 1000)


@pytest.mark.parametrize(("visible", "utilisation"), [("2,0", 43.0), ("GPU-nine", 99.0)])
def test_the_gpu_that_cuda_shows_to_the_script_is_the_one_that_is_read(
    stub: Path, visible: str, utilisation: float
) -> None:
    assert Sample.model_validate_json(read(stub, CUDA_VISIBLE_DEVICES=visible)).utilisation == utilisation


@pytest.mark.parametrize("call", ["init", "handle", "utilisation", "memory", "name"])
def test_a_gpu_that_fails_gives_no_figures_but_a_reason(stub: Path, call: str) -> None:
    assert read(stub, NVML_FAILS=call, NVML_CODE="15").startswith("no GPU figures: ")


def test_a_host_without_driver_gives_no_gpu_figures(tmp_path: Path) -> None:
    said = read(tmp_path)
    assert "nvml" in said.lower() or "library" in said.lower()
    assert not said.startswith("{")


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
