"""`check`: what this host has, and what it lacks."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from labapex import drivers, installed, landlock, sandbox
from labapex.cli.output import print_json, stdout
from labapex.errors import MalformedInput, UsageError
from labapex.protocol.devices import Device
from labapex.trust import fingerprint
from labapex_worker import cgroups, control, devices, packages, trust
from labapex_worker.cli.options import HomeOption, JsonOption
from labapex_worker.cli.place import home_of
from labapex_worker.config import Config, Home, own_site_packages
from labapex_worker.identity import Identity

DISK_BYTES = 10 << 30
_ABSENT = ("absent", "yellow")


@dataclass(frozen=True)
class Finding:
    """One line of `check`. Something required that is not there keeps the worker from working."""

    what: str
    good: bool
    required: bool
    detail: str


def check(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Say what is missing on this host. Exits with 1 if it is something that the worker cannot do without."""
    findings = examine(home_of(home))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table("", "what", "found")
        for finding in findings:
            text, colour = ("ok", "green") if finding.good else ("missing", "red") if finding.required else _ABSENT
            table.add_row(Text(text, colour), finding.what, finding.detail)
        stdout().print(table)
    if any(finding.required and not finding.good for finding in findings):
        raise typer.Exit(1)


def examine(home: Home) -> list[Finding]:
    """What `check` shows."""
    findings = []
    try:
        config: Config | None = home.load()
        Identity.load(home.key)
        findings.append(Finding("enrolment", True, True, f"'{config.name}' at {config.platform}" if config else ""))
    except UsageError as error:
        config = None
        findings.append(Finding("enrolment", False, True, str(error)))
    if config is not None:
        findings.append(_trust(home, config))
    found_devices = devices.find()
    findings += [_device(device) for device in found_devices]
    missing = sandbox.available()
    findings.append(Finding("sandbox", missing is None, True, missing or "bubblewrap works"))
    lacking = landlock.lacking()
    kernel = lacking or f"version {landlock.version()}: a script cannot reach what runs beside it"
    findings.append(Finding("Landlock", lacking is None, False, kernel))
    findings.append(_limits(home))
    finding, paths = _torch(home, config)
    findings.append(finding)
    gpus = [device for device in found_devices if device.kind == "cuda" and device.usable]
    if gpus:  # one driver drives them all
        findings.append(Finding("torch build", *_build(gpus[0], paths)))
    findings += [_torch_files(paths)] if finding.good else []
    place = next(path for path in (home.path, *home.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    findings.append(
        Finding(
            "disk", free >= DISK_BYTES, True, f"{free >> 30} GiB free in {place}; {DISK_BYTES >> 30} GiB are needed"
        )
    )
    return findings


def _limits(home: Home) -> Finding:
    """What keeps a job within its limits. The daemon's own group is what counts, and not that of who asks."""
    try:
        daemon = control.ask(home.control, "status")
    except (UsageError, MalformedInput) as error:
        return Finding("limits", False, False, f"the watch; whether control groups, the daemon does not tell: {error}")
    if daemon is None or daemon.pid is None:
        return Finding("limits", False, False, "the watch; whether control groups is seen when the daemon runs")
    group = cgroups.delegated(Path(f"/proc/{daemon.pid}/cgroup"))
    if group is None:
        return Finding(
            "limits", False, False, "the watch alone: no control groups (version 2) are delegated to the daemon"
        )
    return Finding("limits", True, False, f"the watch, and control groups below {group}")


def _device(device: Device) -> Finding:
    """A CPU in place of a GPU, and a GPU that gets no job, are nothing that keeps the worker from working."""
    told = [str(device)]
    told += [f"{device.memory >> 30} GiB"] if device.memory is not None else []
    told += [f"compute {device.capability}"] if device.capability is not None else []
    told += [f"driver {device.driver}"] if device.driver is not None else []
    told += [f"CUDA {device.cuda}"] if device.cuda is not None else []
    told += [f"at most {device.power_limit:.0f} W"] if device.power_limit is not None else []
    told += [device.note] if device.note else []
    return Finding("device", device.usable and device.kind == "cuda", False, "; ".join(told))


def _build(device: Device, paths: tuple[Path, ...]) -> tuple[bool, bool, str]:
    good, detail = drivers.fits(device, drivers.installed(paths))
    return good, False, detail


def _trust(home: Home, config: Config) -> Finding:
    """The fingerprint to compare with the portal's, and whether something could be started now."""
    try:
        believed = trust.load(home, config)
    except UsageError as error:
        return Finding("trust", False, True, str(error))
    if believed is None:
        detail = f"root key {fingerprint(config.root)}; its trust document will be asked for"
        return Finding("trust", True, True, detail)
    why = believed.why_not(time.time())
    days = (believed.document.expires_at - time.time()) / 86400
    good = f"document {believed.document.version}, valid for {days:.0f} days more"
    return Finding("trust", why is None, True, f"root key {fingerprint(believed.root)}; {why or good}")


def _torch(home: Home, config: Config | None) -> tuple[Finding, tuple[Path, ...]]:
    """Which torch jobs find here, and where. A host that has none can work: it is given the platform's."""
    own = config.site_packages if config else own_site_packages()
    supplied = packages.torch(home, config) if config else None
    paths, where = own if supplied is None else (supplied,), os.pathsep.join(map(str, own))
    if (found := drivers.installed(paths)) is None:
        detail = f"none in {where}: jobs bring the platform's, if it supplies one"
    else:
        detail = f"{found.version} in {where}" if supplied is None else f"{found.version}, supplied by the platform"
    return Finding("torch", found is not None, False, detail), paths


def _torch_files(paths: tuple[Path, ...]) -> Finding:
    """Whether torch is as it was installed, all of it: an executable looks at a few files only, and refuses to work."""
    try:
        build = installed.find(paths)
        altered = build.altered() if build is not None else None
    except MalformedInput as error:
        return Finding("torch's files", False, True, str(error))
    if build is None:
        return Finding(
            "torch's files", False, False, "were installed without a list: a platform may refuse such a build"
        )
    said = f"build {build.digest[:16]}" if altered is None else f"{altered} is not what was installed; install it anew"
    return Finding("torch's files", altered is None, True, said)
