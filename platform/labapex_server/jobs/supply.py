"""torch for hosts that have none, as wheels that they get with their jobs: builds of the release that the platform itself has.

The platform judges by what its own build computes, so that one goes to every host that runs it. Others, for hosts' GPUs, are
locked beside it by the operator (`manage.py torch`), and `labapex.drivers` chooses by the host's driver. Nothing is supplied
before, nor once the platform has another torch than the one that was locked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from django.conf import settings

from labapex import drivers, durable, environments, installed
from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.contract import TorchBuild
from labapex.protocol.devices import Device
from labapex.protocol.manifest import MAX_MANIFEST, SuppliedTorch
from labapex_server.jobs import packages
from labapex_server.lib import childprocess

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """The builds that can be supplied, each once. `own`: the version of the one that the platform has itself."""

    builds: tuple[SuppliedTorch, ...] = ()
    own: str | None = None

    def fitting(self, device: Device | None) -> SuppliedTorch:
        """The build for a host whose jobs run on this device. Raises `drivers.NoBuild` with what is missing."""
        if not self.builds:
            raise drivers.NoBuild(
                "this platform supplies no torch; install one, or ask its operator to run: manage.py torch"
            )
        named = {each.build.torch: each for each in self.builds}
        gpu = device if device is not None and device.kind == "cuda" else None
        return named[drivers.choose(list(named), gpu, self.own)]

    def holds(self, digest: str) -> bool:
        """Whether one of the builds has this name."""
        return any(each.build.digest == digest for each in self.builds)


NOTHING = Held()


def lock(beat: Callable[[], None], label: str | None = None) -> SuppliedTorch:
    """Have pip load the wheels of a build of the platform's release of torch, and supply it from now on. `label`: "cpu" or
    "cu126", as torch's versions are marked; None: the very build that the platform has.

    Raises `LabApexError` where the index has none that unpacks to what was asked for."""
    own = _own()
    version = own.version if label is None else f"{_release(own.version)}+{label}"
    wanted = packages.resolve_own(beat) if version == own.version else packages.resolve_torch(version, beat)
    with childprocess.private_folder("torch") as folder:  # as hosts will unpack it
        wheels = {wheel: packages.kept(wheel) for wheel in wanted.wheels}
        environments.unpack(wanted, wheels, folder, limit=settings.LABAPEX.environments_bytes)
        made, says = installed.find([folder]), drivers.installed([folder])
    if version == own.version and (made is None or made.digest != own.digest):
        raise LabApexError(
            f"the index has another build of torch {own.version} than the one that is installed here; install torch from that"
            " index, or have pip ask the one that this torch is from"
        )
    built = "{}.{}".format(*cuda) if (cuda := drivers.cuda(version)) else None
    if made is None or says is None or (made.version, says.cuda) != (version, built):
        found = "no torch" if says is None else f"torch {says.version}, built for {_cuda(says.cuda)}"
        raise LabApexError(
            f"the index's torch {version} is {found}; have pip ask an index that has it for {_cuda(built)}"
        )
    supplied = SuppliedTorch(
        build=TorchBuild(torch=made.version, files=len(made.files), digest=made.digest), packages=wanted
    )
    folder = settings.LABAPEX.private_folder("torch")
    durable.write(folder / f"{made.version}.json", canonical(supplied))
    return supplied


def held() -> Held:
    """What can be supplied; nothing where none was locked, or where all that was is of another release than the platform's."""
    if not (paths := _paths()):
        return NOTHING
    try:
        own = _own()
    except LabApexError as error:
        log.error("hosts without torch get no jobs: %s", error)
        return NOTHING
    found: list[SuppliedTorch] = []
    for path in paths:
        try:
            found += [each for each in _read(path) if _goes_with(own, each.build)]
        except MalformedInput as error:
            log.error("%s is no torch to be supplied and does not count: %s", path, error)
    return Held(tuple(found), own.version)


def locked() -> list[SuppliedTorch]:
    """What `lock` found, whether or not it still goes with the platform's own. Raises `MalformedInput`."""
    return [each for path in _paths() for each in _read(path)]


def _paths() -> list[Path]:
    return sorted((settings.LABAPEX.home / "torch").glob("*.json"))


def _read(path: Path) -> list[SuppliedTorch]:
    """The build in a file; none where it was deleted since."""
    try:
        with path.open("rb") as file:
            return [parse(SuppliedTorch, file.read(MAX_MANIFEST + 1), limit=MAX_MANIFEST)]
    except FileNotFoundError:
        return []


def _goes_with(own: installed.Build, build: TorchBuild) -> bool:
    """Whether a locked build is the platform's own, or another of its release; if not, it is told in the log."""
    same = build.digest == own.digest if build.torch == own.version else _release(build.torch) == _release(own.version)
    if not same:
        log.error(
            "hosts get no torch %s: torch is another one here since it was locked; run: manage.py torch %s",
            build.torch, drivers.label(build.torch),
        )  # fmt: skip
    return same


def _release(version: str) -> str:
    """What all builds of one release of torch have in common."""
    return version.partition("+")[0]


def _cuda(version: str | None) -> str:
    return "CPUs" if version is None else f"CUDA {version}"


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
