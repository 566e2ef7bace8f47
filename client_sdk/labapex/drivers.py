"""Which builds of torch a GPU's driver can run, and the GPU itself: which of several is the one for a host, and whether the one
that is installed there fits. Pure but for reading what is installed; nothing is imported, and nothing is downloaded.

A driver runs what was built for its own family of CUDA and for older ones. A build has code for the GPUs that it was compiled
for. Not run on a GPU yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labapex.errors import LabApexError
from labapex.protocol.devices import Device

Version = tuple[int, int]  # of CUDA, or of a GPU: its compute capability

FAMILIES = ((580, 13), (525, 12), (450, 11))
"""(least driver, CUDA's major version): NVIDIA, CUDA Compatibility, minor version compatibility, table 1
<https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html>."""

CAPABILITIES: tuple[tuple[Version, Version, int | None], ...] = (
    ((13, 0), (7, 5), None),
    ((12, 9), (7, 0), None),
    ((12, 8), (7, 0), 12),
    ((11, 0), (5, 0), 9),
)
"""(from this CUDA on, least capability, greatest major one; None: any newer GPU compiles what it needs): what torch's wheels are
compiled for, `get_cuda_arch_list` of pytorch/test-infra <https://github.com/pytorch/test-infra/pull/7046>."""

_LABEL = re.compile(r"cu([0-9]{2})([0-9]{1,2})")
_MAX_VERSION_FILE = 64 << 10


class NoBuild(LabApexError):
    """None of the builds of torch at hand runs on a host; the message says which build or driver would."""


@dataclass(frozen=True)
class Build:
    """An installed torch, as its own `version.py` says it. `cuda`: "13.0"; None for a build without CUDA."""

    version: str
    cuda: str | None


def label(torch: str) -> str:
    """What a version of torch says of its build: "cu126" of "2.13.0+cu126", "cpu"; nothing where it says none."""
    return torch.partition("+")[2]


def cuda(torch: str) -> Version | None:
    """The CUDA that a version of torch is built for, by its label; None for a build without."""
    found = _LABEL.fullmatch(label(torch))
    return (int(found[1]), int(found[2])) if found else None


def family(driver: str) -> int | None:
    """The newest major version of CUDA whose builds this driver runs; None where it is too old, or tells no version."""
    found = re.match(r"[0-9]{1,6}", driver)
    return next((cuda for least, cuda in FAMILIES if found and int(found[0]) >= least), None)


def tag(cuda: int) -> str:
    """How torch's wheels for a family of CUDA are marked: 2.13.0+cu130 is one of cu13*."""
    return f"cu{cuda}*"


def choose(held: Sequence[str], gpu: Device | None, own: str | None = None) -> str:
    """Which of these versions of torch a host is to have. `gpu`: that on which its jobs run; None: they run on its CPU.

    `own` if that runs there, as work of its class needs no calibration to be judged. Else the newest CUDA that the driver and the
    GPU run; on a CPU the build for CPUs, or one with CUDA, which runs there too. Raises `NoBuild`."""
    if not held:
        raise NoBuild("no build of torch is at hand")
    lacking = {torch: None if gpu is None else _why_not(cuda(torch), gpu) for torch in sorted(held)}
    fitting = [torch for torch, why in lacking.items() if why is None]
    if gpu is not None and not fitting:
        raise NoBuild(f"{_runs(gpu)}; " + "; ".join(f"{torch} {why}" for torch, why in lacking.items()))
    if own in fitting:
        return own
    best = min if gpu is None else max
    return best(fitting, key=lambda torch: cuda(torch) or (0, 0))


def _why_not(built: Version | None, gpu: Device) -> str | None:
    """Why a build for this CUDA does not run on a GPU, in words; None where it does."""
    if built is None:
        return "is built without CUDA and does not use the GPU"
    if (family(gpu.driver or "") or 0) < built[0]:
        least = next((least for least, major in reversed(FAMILIES) if major >= built[0]), None)
        return f"needs driver {least} or newer" if least else "needs a driver that is not known here"
    if (capability := _version(gpu.capability)) is not None:
        for since, low, high in CAPABILITIES:
            if built >= since:
                knows = capability >= low and (high is None or capability[0] <= high)
                return None if knows else f"has no code for GPUs of compute capability {gpu.capability}"
    return None


def _version(text: str | None) -> Version | None:
    found = re.match(r"([0-9]{1,3})\.([0-9]{1,3})", text or "")
    return (int(found[1]), int(found[2])) if found else None


def _runs(gpu: Device) -> str:
    if (best := family(gpu.driver or "")) is None:
        return f"driver {gpu.driver or 'unknown'}: builds of torch need {FAMILIES[-1][0]} or newer"
    return f"driver {gpu.driver} runs builds for CUDA {best} ({tag(best)}) and older"


# -- what is installed -------------------------------------------------------------------------------------------------


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


def fits(gpu: Device, build: Build | None) -> tuple[bool, str]:
    """Whether the installed torch runs on a GPU, and in words what does."""
    if family(gpu.driver or "") is None:
        return False, _runs(gpu)
    if build is None:
        return False, f"{_runs(gpu)}; no torch is installed"
    if (why := _why_not(_version(build.cuda), gpu)) is not None:
        return False, f"{_runs(gpu)}; {build.version} {why}"
    return True, f"{_runs(gpu)}; {build.version} is built for CUDA {build.cuda}"
