"""The packages of a job, let in where its script begins and not before: what records and reports runs without them.

Their place is behind all that is frozen and before what the host has installed. So a wheel stands in for nothing of the
runner, nor for torch, which is long imported; and what a host happens to have in another version does not decide.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from labapex.protocol.requirements import PACKAGES_SETTING

_HOST = "LABAPEX_SITE_PACKAGES"


def admit() -> None:
    """Make this process find its job's packages, where it has some. For good: the process runs a script and nothing else."""
    folder = os.environ.get(PACKAGES_SETTING)
    if not folder or folder in sys.path:
        return
    host = _host()
    sys.path.insert(min((sys.path.index(path) for path in host if path in sys.path), default=len(sys.path)), folder)
    brought = {entry.name.partition(".")[0] for entry in Path(folder).iterdir()}
    stale = {name for name in brought if of_host(getattr(sys.modules.get(name), "__file__", None))}
    for name in list(sys.modules):  # torch imports what it finds, a progress bar for one: the script gets its own
        if name.partition(".")[0] in stale:
            del sys.modules[name]
    importlib.invalidate_caches()


def of_host(file: str | None) -> bool:
    """Whether a module's file is one of those that the host has besides torch, and not the job's own."""
    return any((file or "").startswith(f"{path}{os.sep}") for path in _host())


def _host() -> list[str]:
    return [path for path in os.environ.get(_HOST, "").split(os.pathsep) if path]
