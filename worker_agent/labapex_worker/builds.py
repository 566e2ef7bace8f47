"""Which build of torch a GPU's driver can run, and which one is installed. Nothing is imported, and nothing is downloaded.

A driver runs what was built for its own family of CUDA and for older ones. Not run on a GPU yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labapex.protocol.devices import Device

FAMILIES = ((580, 13), (525, 12), (450, 11))
"""(least driver, CUDA's major version): NVIDIA, CUDA Compatibility, minor version compatibility, table 1
<https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html>."""

_MAX_VERSION_FILE = 64 << 10


@dataclass(frozen=True)
class Build:
    """An installed torch, as its own `version.py` says it. `cuda`: "13.0"; None for a build without CUDA."""

    version: str
    cuda: str | None


def family(driver: str) -> int | None:
    """The newest major version of CUDA whose builds this driver runs; None where it is too old, or tells no version."""
    found = re.match(r"[0-9]{1,6}", driver)
    return next((cuda for least, cuda in FAMILIES if found and int(found[0]) >= least), None)


def tag(cuda: int) -> str:
    """How torch's wheels for a family of CUDA are marked: 2.13.0+cu130 is one of cu13*."""
    return f"cu{cuda}*"


def installed(paths: Iterable[Path]) -> Build | None:
    """The torch in the first of these folders that has one."""
    for path in paths:
        try:
            with (path / "torch" / "version.py").open("rb") as file:
                text = file.read(_MAX_VERSION_FILE).decode(errors="replace")
        except OSError:
            continue
        version = re.search(r"^__version__ = '([^'\n]+)'", text, re.MULTILINE)
        cuda = re.search(r"^cuda(?:: [^=\n]+)? = '([0-9.]+)'", text, re.MULTILINE)
        if version is not None:
            return Build(version[1], cuda[1] if cuda else None)
    return None


def fits(device: Device, build: Build | None) -> tuple[bool, str]:
    """Whether the installed torch runs on a GPU's driver, and in words what does."""
    best = family(device.driver or "")
    if best is None:
        return False, f"driver {device.driver or 'unknown'}: builds of torch need {FAMILIES[-1][0]} or newer"
    runs = f"driver {device.driver} runs builds for CUDA {best} ({tag(best)}) and older"
    if build is None:
        return False, f"{runs}; no torch is installed"
    if build.cuda is None:
        return (
            False,
            f"{runs}; {build.version} is built without CUDA and does not use the GPU: install one of {tag(best)}",
        )
    if int(build.cuda.partition(".")[0]) > best:
        return (
            False,
            f"{runs}; {build.version} is built for CUDA {build.cuda}: install one of {tag(best)}, or a newer driver",
        )
    return True, f"{runs}; {build.version} is built for CUDA {build.cuda}"
