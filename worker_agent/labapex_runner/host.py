"""What the runner takes from the host it runs on, and what it forbids to itself there.

torch is not frozen: the host has the build that fits its hardware. Its packages come LAST on the path, so that nothing
of the host's can stand in for a frozen module.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from labapex import installed
from labapex.errors import Tampered
from labapex.proof.determinism import pin

SITE_PACKAGES = "LABAPEX_SITE_PACKAGES"
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def prepare(threads: int, folder: Path) -> None:
    """Pin what decides bits, make the host's packages importable, and `folder`/tmp the place for temporary files and caches.

    Must come before the first import of torch, and before anything asks for a temporary file: the frozen program's own
    libraries lie where `TMPDIR` pointed at its start, and must not lie where a script may write."""
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before its environment was pinned")
    os.environ.update(pin(threads))
    place = folder / "tmp"
    place.mkdir(mode=0o700, exist_ok=True)
    os.environ.update(HOME=str(place), TMPDIR=str(place))
    for packages in map(str, site_packages()):
        if packages not in sys.path:
            sys.path.append(packages)
    if getattr(sys, "frozen", False):  # children of the script are ordinary programs: not for them the frozen libraries
        original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
        if original is None:
            os.environ.pop("LD_LIBRARY_PATH", None)
        else:
            os.environ["LD_LIBRARY_PATH"] = original


def site_packages() -> list[Path]:
    """Where the host has torch, as it told."""
    return [Path(packages) for packages in os.environ.get(SITE_PACKAGES, "").split(os.pathsep) if packages]


def torch_build(seed: str) -> str | None:
    """The digest that names this host's build of torch, once a sample of its files was found as they were installed.

    None where nothing was written down when it was installed. Raises `MalformedInput`, and `Tampered` with the file that
    is another; which files are looked at follows from the lease's seed, which the host did not know before."""
    build = installed.find(site_packages())
    if build is None:
        return None
    if (path := build.altered(build.sample(seed))) is not None:
        raise Tampered(f"this host's torch {build.version} is not what was installed: {path}; install it anew")
    return build.digest


def harden() -> None:
    """No core file, no debugger, no reading of `/proc/<pid>/mem` by other processes of the same user.

    It keeps honest hosts honest; root can still read everything, and the documentation says so."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(parent: int) -> None:
    """Be killed when the process `parent`, which forked this one, ends in whatever way."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
