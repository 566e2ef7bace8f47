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

from labapex.proof.determinism import pin

SITE_PACKAGES = "LABAPEX_SITE_PACKAGES"
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def prepare(threads: int) -> None:
    """Pin what decides bits, and make the host's packages importable. Must come before the first import of torch."""
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before its environment was pinned")
    os.environ.update(pin(threads))
    for folder in os.environ.get(SITE_PACKAGES, "").split(os.pathsep):
        if folder and folder not in sys.path:
            sys.path.append(folder)
    if getattr(sys, "frozen", False):  # children of the script are ordinary programs: not for them the frozen libraries
        original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
        if original is None:
            os.environ.pop("LD_LIBRARY_PATH", None)
        else:
            os.environ["LD_LIBRARY_PATH"] = original


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
