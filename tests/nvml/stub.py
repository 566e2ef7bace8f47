"""The NVIDIA driver as a trace tells it: libnvidia-ml built from stub.c, played to the real pynvml."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

NEXT = "next\n"
Play = Callable[[str], None]


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub, in a folder of its own: for LD_LIBRARY_PATH of other processes."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of libnvidia-ml")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("stub.c")
    subprocess.run([compiler, "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def play(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """`play(trace)` puts a driver that plays the trace into this process."""
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    count = 0

    def start(trace: str) -> None:
        nonlocal count
        count += 1
        own = tmp_path / f"nvml-{count}.so"  # its state is the file's: each trace gets a library of its own
        shutil.copyfile(nvml_library, own)
        (tmp_path / "trace").write_text(trace)
        monkeypatch.setenv("NVML_TRACE", str(tmp_path / "trace"))
        pynvml._nvmlGetFunctionPointer_cache.clear()
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(own)))

    return start
