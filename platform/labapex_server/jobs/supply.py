"""torch for hosts that have none: the platform's own, as wheels that they get with their jobs.

The platform judges by what its torch computes, so that one is the one to give. The operator has it locked (`manage.py torch`);
nothing is supplied before, nor once the platform has another torch than the one that was locked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from django.conf import settings

from labapex import durable, environments, installed
from labapex.errors import LabApexError
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.contract import TorchBuild
from labapex.protocol.manifest import MAX_MANIFEST, SuppliedTorch
from labapex_server.jobs import packages
from labapex_server.lib import childprocess

log = logging.getLogger(__name__)


def lock(beat: Callable[[], None]) -> SuppliedTorch:
    """Have pip load the wheels of the platform's own torch, and supply it from now on.

    Raises `LabApexError` where the index has none that unpack to the very build that the platform has."""
    locked = packages.resolve_own(beat)
    with childprocess.private_folder("torch") as folder:  # as hosts will unpack it
        wheels = {wheel: packages.kept(wheel) for wheel in locked.wheels}
        environments.unpack(locked, wheels, folder, limit=settings.LABAPEX.environments_bytes)
        made = installed.find([folder])
    own = _own()
    if made is None or made.digest != own.digest:
        raise LabApexError(
            f"the index has another build of torch {own.version} than the one that is installed here; install torch from that"
            " index, or have pip ask the one that this torch is from"
        )
    supplied = SuppliedTorch(
        build=TorchBuild(torch=made.version, files=len(made.files), digest=made.digest), packages=locked
    )
    durable.write(_path(), canonical(supplied))
    return supplied


def torch() -> SuppliedTorch | None:
    """What hosts without torch are given; None where that is nothing."""
    try:
        found = locked()
        if found is None:
            return None
        own = _own()
    except LabApexError as error:
        log.error("hosts without torch get no jobs: %s", error)
        return None
    if own.digest != found.build.digest:
        log.error(
            "hosts without torch get no jobs: torch is another one here since it was locked; run: manage.py torch"
        )
        return None
    return found


def locked() -> SuppliedTorch | None:
    """What `lock` found, whether or not it still fits. Raises `MalformedInput`."""
    try:
        with _path().open("rb") as file:
            return parse(SuppliedTorch, file.read(MAX_MANIFEST + 1), limit=MAX_MANIFEST)
    except FileNotFoundError:
        return None


def _own() -> installed.Build:
    """The platform's own torch. Raises `LabApexError` where it cannot be told."""
    there = childprocess.site_packages()
    found = _found(there, tuple(path.stat().st_mtime_ns for path in there if path.exists()))
    if found is None:
        raise LabApexError("this platform's own torch was installed without a list of its files; install it by pip")
    return found


@lru_cache(maxsize=1)
def _found(there: tuple[Path, ...], changed: tuple[int, ...]) -> installed.Build | None:
    return installed.find(there)


def _path() -> Path:
    path: Path = settings.LABAPEX.home / "torch.json"
    return path
