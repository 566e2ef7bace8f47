"""`make gpu-check` on a host without a GPU: it says so, and all that needs none works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.nvml import traces

ROOT = Path(__file__).parents[2]
READ = """
import gpu
from labapex_runner.samples import GpuMeter
gpu.PERIOD = 0.0  # as fast as it can
with gpu.Watch(GpuMeter()) as watch:
    while len(watch.samples) < 3:
        pass
print("\\n".join([gpu.driver(), *gpu.drawn([2.0, 1.0], watch.samples[:3])]))
"""


def run(*line: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    roots = [str(ROOT / name) for name in ("client_sdk", "worker_agent", "benchmarks")]
    environment = {
        "PATH": os.environ["PATH"],
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
        "PYTHONPATH": os.pathsep.join([*filter(None, [variables.get("PYTHONPATH")]), *roots]),
    }
    return subprocess.run([sys.executable, *line], env=environment, capture_output=True, text=True)


def test_everything_is_measured_with_the_cpu_in_place_of_the_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    ran = run(ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--quick", "--out", out)
    assert ran.returncode == 0, ran.stderr
    page = out.read_text()
    assert "**cpu: " in page
    assert "| ResNet-20, batch 4 | 1 | 3 of 3 | 0 |" in page
    assert "| ResNet-20, batch 4, AMP | 1 | 3 of 3 | 0 |" in page
    assert "| ResNet-20, batch 4 | 1 | 0 | 0 |" in page
    assert "| k = 1 |" in page
    assert "readings by cpu" in page
    assert "the loss against 4 iterations" in page


def test_without_a_gpu_nothing_is_measured_and_the_page_stays(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    out.write_text("not measured")
    ran = run(ROOT / "benchmarks" / "gpu.py", "--out", out)
    assert ran.returncode == 1
    assert ran.stderr.startswith("No GPU: torch ")
    assert out.read_text() == "not measured"


def test_what_the_interpreter_lacks_is_named(tmp_path: Path) -> None:
    ran = run("-S", ROOT / "benchmarks" / "gpu.py", "--out", tmp_path / "gpu.md")  # without its site-packages
    assert ran.returncode == 1
    lacking = [line.partition(" ")[0] for line in ran.stderr.splitlines()]
    assert lacking == ["torch", "numpy", "safetensors", "pydantic", "rfc8785", "nvidia-ml-py", "psutil"]


def test_a_gpus_readings_are_drawn(nvml_library: Path, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(traces.trace(["util 41\n"] * 10))
    ran = run("-c", READ, LD_LIBRARY_PATH=str(nvml_library.parent), NVML_TRACE=str(tmp_path / "trace"))
    version, loss, utilisation, memory, words = ran.stdout.splitlines()
    assert version == "driver 580.95.05"
    assert loss.split() == ["loss", "1", "to", "2", "█▁"]
    assert utilisation.split() == ["utilisation", "41", "to", "41", "%", "▁▁▁"]
    assert memory.split()[0] == "memory"
    assert words.startswith("3 readings by nvml")
