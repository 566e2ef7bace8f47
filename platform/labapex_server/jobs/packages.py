"""A job's requirements: locked once, by pip, against the operator's index; their wheels are kept and handed to workers.

pip resolves and loads, and installs nothing. Of what it loads only wheels are taken, so no code of a package runs. What the hosts
bring along is shown to it as empty wheels to which it is bound: it can neither load another torch nor choose packages that
do not go with this one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from django.conf import settings
from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

from labapex import environments
from labapex.errors import LabApexError, MalformedInput
from labapex.protocol.requirements import MAX_WHEEL_BYTES, MAX_WHEELS, Lock, Package, Wheel
from labapex_server.jobs.models import Job, KeptWheel
from labapex_server.lib import childprocess, clock, store

log = logging.getLogger(__name__)

HOSTS = ("torch", "numpy", "safetensors")
"""What every host has or is given (`jobs.supply`): these, and what they need to run."""
_MEMORY = 4 << 30  # of pip
_PASSED_ON = re.compile(r"(PIP_.*|.*_proxy|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|HOME|XDG_CONFIG_HOME)", re.I)
_TROUBLE = ("WARNING: Retrying (", "ERROR: HTTP error 5", "Read timed out", "There was a problem confirming the ssl")
_ASKED = re.compile(r"The user requested \(constraint\) (\S+)(?: \(from [^)]*\))?")
_CAUSE = "The conflict is caused by:"


class NotToBeHad(LabApexError):
    """There is no set of packages that meets the requirements, or it may not be used; the message says why."""


class IndexSilent(LabApexError):
    """The operator's index does not answer, or pip does not work: nobody's requirements are at fault."""


def lock(job: Job, beat: Callable[[], None]) -> Lock:
    """The job's packages, found now if they were not yet. Raises `NotToBeHad`, `IndexSilent`."""
    wanted = job.job_spec.requirements
    if wanted and job.requirements is None:
        found = resolve(wanted, beat)
        job.requirements = found.model_dump(mode="json")
        Job.objects.filter(pk=job.pk).update(requirements=job.requirements)
    return job.lock


@contextmanager
def environment(job: Job) -> Iterator[Path | None]:
    """The folder of a job's packages, which stays as long as this lasts; None where it has none.

    Raises `NotToBeHad` for wheels that hold what they may not."""
    locked = job.lock
    if not locked.wheels:
        yield None
        return
    wheels = {wheel: kept(wheel) for wheel in locked.wheels}
    found = environments.Store(settings.LABAPEX.private_folder("environments"), settings.LABAPEX.environments_bytes)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(found.held(locked, wheels))
        except MalformedInput as error:
            raise NotToBeHad(str(error)) from None
        yield folder


def kept(wheel: Wheel) -> Path:
    """A wheel, on this disk. Raises `LabApexError` where it is no longer kept."""
    try:
        return store.fetch(path(wheel))
    except FileNotFoundError:
        raise LabApexError(
            f"{wheel.file} is no longer among the platform's wheels; jobs that need it cannot go on"
        ) from None


def path(wheel: Wheel) -> Path:
    """The place at which a wheel is kept (`lib.store`)."""
    return place(wheel.sha256)


def place(sha256: str) -> Path:
    """The same by the wheel's digest."""
    folder: Path = settings.LABAPEX.home / "wheels"
    return folder / sha256[:2] / sha256


# -- resolving ---------------------------------------------------------------------------------------------------------


def resolve(requirements: Sequence[str], beat: Callable[[], None]) -> Lock:
    """The lock of some requirements; its wheels are kept. Raises as `lock` does."""
    most = settings.LABAPEX.packages_limit_bytes
    with childprocess.private_folder("packages") as folder:
        bound = _write_given(folder, given())
        code, said = _download(folder, ["--constraint=constraints.txt"], requirements, beat, most)
        if code:
            raise _failure(code, said, bound)
        return _kept(folder / "wheels", bound, most)


def resolve_own(beat: Callable[[], None]) -> Lock:
    """A lock of torch and what it runs with, the very versions that the platform has, but for what is frozen into the runner.

    Raises `LabApexError` where the index does not have them."""
    frozen = _frozen()
    wanted = [f"{name}=={version}" for name, (version, _) in given().items() if name not in frozen]
    return _resolve_torch(wanted, {}, ["--no-deps"], beat)


def resolve_torch(version: str, beat: Callable[[], None]) -> Lock:
    """Likewise with this version of torch, and what that one needs besides: of all that the platform has, its versions.

    Raises `LabApexError` where the index does not have them."""
    frozen = _frozen()
    own = {name: found for name, (found, _) in given().items() if name not in frozen and name != "torch"}
    wanted = [f"torch=={version}", *(f"{name}=={own[name]}" for name in HOSTS if name in own)]
    return _resolve_torch(wanted, own, ["--constraint=constraints.txt"], beat)


def _resolve_torch(wanted: list[str], own: Mapping[str, str], options: list[str], beat: Callable[[], None]) -> Lock:
    """A lock of these, bound to what is frozen into the runner and to the versions of `own`."""
    most = settings.LABAPEX.environments_bytes
    with childprocess.private_folder("packages") as folder:
        bound = _write_given(folder, {name: (version, ()) for name, version in _frozen().items()})
        with (folder / "constraints.txt").open("a") as file:
            file.writelines(f"{name}=={version}\n" for name, version in own.items())
        code, said = _download(folder, options, wanted, beat, most)
        if code:
            raise LabApexError(f"pip does not load {', '.join(wanted)} (exit {code}): {said[-1000:]}")
        return _kept(folder / "wheels", bound, most)


def given() -> dict[str, tuple[str, tuple[str, ...]]]:
    """What a job's packages must go with: name -> (version, lines of metadata on its extras)."""
    there = [str(path) for path in childprocess.site_packages()]
    installed = {str(canonicalize_name(found.name)): found for found in importlib.metadata.distributions(path=there)}
    if "torch" not in installed:
        raise LabApexError(
            f"torch is not installed in {os.pathsep.join(there)}, so nothing can be chosen to go with it"
        )
    versions: dict[str, str] = {}
    waiting = [name for name in HOSTS if name in installed]
    while waiting:
        name = waiting.pop()
        if name not in versions:
            versions[name] = installed[name].version
            needed = map(Requirement, installed[name].requires or ())
            names = [canonicalize_name(r.name) for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
            waiting += [each for each in names if each in installed]
    versions |= _frozen()  # they come before anything else in every executable
    return {name: (version, _extras(installed.get(name), version)) for name, version in sorted(versions.items())}


def _frozen() -> dict[str, str]:
    """What is frozen into the runner: name -> version."""
    frozen = settings.LABAPEX.runner_dir / "packages.json"
    found: dict[str, str] = json.loads(frozen.read_text()) if frozen.is_file() else {}
    return found


def _extras(found: importlib.metadata.Distribution | None, version: str) -> tuple[str, ...]:
    """What a given package asks for besides, where a requirement names one of its extras."""
    if found is None or found.version != version:
        return ()
    needed = [line for line in found.requires or () if (marker := Requirement(line).marker) and "extra" in str(marker)]
    offered = found.metadata.get_all("Provides-Extra") or ()
    return (*(f"Provides-Extra: {name}" for name in offered), *(f"Requires-Dist: {line}" for line in needed))


def _write_given(folder: Path, given: Mapping[str, tuple[str, tuple[str, ...]]]) -> tuple[Package, ...]:
    """Empty wheels of what is given, and constraints that bind pip to them."""
    (folder / "given").mkdir()
    packages, constraints = [], []
    for name, (version, extras) in sorted(given.items()):
        package = Package(name=name, version=str(Version(version)))
        stem = f"{name.replace('-', '_')}-{package.version}"
        wheel = folder / "given" / f"{stem}-py3-none-any.whl"
        about = {
            "METADATA": "\n".join(
                ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {package.version}", *extras, ""]
            ),
            "WHEEL": "Wheel-Version: 1.0\nGenerator: labapex\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for part, text in about.items():
                archive.writestr(f"{stem}.dist-info/{part}", text)
        packages.append(package)
        constraints.append(f"{name} @ file://{quote(str(wheel))}\n")
    (folder / "constraints.txt").write_text("".join(constraints))
    return tuple(packages)


def _download(
    folder: Path, options: Sequence[str], requirements: Sequence[str], beat: Callable[[], None], most: int
) -> tuple[int, str]:
    """Have pip load wheels, of `most` bytes together, into `folder`/wheels: its exit status and words. Raises `NotToBeHad`."""
    config = settings.LABAPEX
    for name in ("wheels", "tmp"):
        (folder / name).mkdir()

    def look() -> None:
        beat()
        if _size(folder) > 2 * most:  # a file is there twice while pip moves it
            raise _too_large(most)

    line = [sys.executable, "-I", "-m", "pip", "download", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    line += ["--disable-pip-version-check", "--no-color", "--progress-bar=off", "--retries=2"]
    try:
        return childprocess.tool(
            # Not in a file: there pip would fill in variables of its environment, secrets of the index among them.
            [*line, *options, "--dest=wheels", "--", *requirements],
            folder,
            environment=_environment(folder),
            seconds=config.packages_seconds,
            beat=look,
            file_bytes=min(MAX_WHEEL_BYTES, most),
            memory_bytes=_MEMORY,
        )
    except childprocess.ChildTimedOut:
        raise NotToBeHad(
            f"pip found no set of packages within {config.packages_seconds:g} seconds; name exact versions"
        ) from None


def _environment(folder: Path) -> dict[str, str]:
    """pip's own settings and the way to the network, and nothing of ours."""
    passed = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **passed, "TMPDIR": str(folder / "tmp")}


def _kept(folder: Path, bound: tuple[Package, ...], most: int) -> Lock:
    """The lock of what pip loaded, its wheels moved to where they are kept."""
    names = {package.name for package in bound}
    found: list[tuple[Wheel, Path]] = []
    for file in sorted(folder.iterdir()):
        try:
            name, version, _, _ = parse_wheel_filename(file.name)
            if name in names:
                continue
            with file.open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            size = file.stat().st_size
            found.append((Wheel(name=name, version=str(version), file=file.name, sha256=sha256, size=size), file))
        except (InvalidWheelFilename, InvalidVersion, ValidationError):
            raise NotToBeHad(
                f"the index gave {file.name[:200]!r}, which is no wheel of at most {MAX_WHEEL_BYTES} bytes"
            ) from None
    if len(found) > MAX_WHEELS:
        raise NotToBeHad(f"they come to {len(found)} packages, and at most {MAX_WHEELS} are installed; ask for less")
    if sum(wheel.size for wheel, _ in found) > most:
        raise _too_large(most)
    wheels = tuple(sorted((wheel for wheel, _ in found), key=lambda wheel: wheel.name))
    try:
        locked = Lock(python="{}.{}".format(*sys.version_info), given=bound, wheels=wheels)
    except ValidationError:
        raise NotToBeHad("the index gave two wheels of one package") from None
    for wheel, file in found:
        # First the mark, then the look: whoever deletes old ones holds the row meanwhile.
        KeptWheel.objects.update_or_create(sha256=wheel.sha256, defaults={"wanted_at": clock.now()})
        if store.size(path(wheel)) is None:
            store.keep(file, path(wheel))
    return locked


def _too_large(most: int) -> NotToBeHad:
    return NotToBeHad(f"their wheels come to more than {most} bytes, which is the most that is taken; ask for less")


def _size(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += (Path(parent) / name).lstat().st_size
    return total


# -- what pip says -----------------------------------------------------------------------------------------------------


def _failure(code: int, said: str, bound: tuple[Package, ...]) -> LabApexError:
    if code < 0 or "No module named pip" in said or any(sign in said for sign in _TROUBLE):
        log.error("pip could not ask the index (exit %d): %s", code, said[-1000:])  # which names the operator's hosts
        return IndexSilent(
            "the platform could not ask its package index for the requirements; hand the job in again later"
        )
    return NotToBeHad(plain(said, bound))


def plain(said: str, bound: Sequence[Package]) -> str:
    """pip's reason without what is about pip, and what to do."""
    versions = {package.name: package.version for package in bound}
    lines: list[str] = []
    in_cause = False
    for line in map(str.strip, said.splitlines()):
        if line.startswith("ERROR: ") and "ResolutionImpossible" not in line:
            lines.append(line.removeprefix("ERROR: "))
        in_cause = line == _CAUSE or (in_cause and bool(line))
        if in_cause and line != _CAUSE:
            lines.append(_ASKED.sub(lambda m: f"the hosts have {m[1]} {versions.get(m[1], '')}".rstrip(), line))
    torch = versions.get("torch", "")
    return "\n".join(
        [
            *(dict.fromkeys(lines) or [said[-500:].strip()]),
            f"Choose versions that go together, and with Python {sys.version_info[0]}.{sys.version_info[1]} and torch {torch};"
            " only wheels are taken, nothing is built from source.",
        ]
    )
