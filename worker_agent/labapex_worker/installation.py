"""What `install` makes on a host, and how all of it goes away again.

Before anything is made, a record of what will be made that is not there yet is written; `uninstall` removes what the record
names, the worker's folder, and nothing else. So it does not matter where either of them is interrupted. All paths in a record
are below the root that was installed into.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import field_validator

from labapex.errors import LabApexError, MalformedInput, UsageError
from labapex.protocol.canonical import Message, parse
from labapex_worker import unit
from labapex_worker.config import SYSTEM_HOME, Home, own_site_packages
from labapex_worker.supervisor import Folder

USER = "labapex-worker"
_TOOLS = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# What useradd and userdel leave beside the files that they change.
_BESIDE = tuple(
    Path("/etc") / name for name in ("passwd-", "group-", "shadow-", "gshadow-", "subuid-", "subgid-", ".pwd.lock")
)
_ENVIRONMENT = """\
# Environment of the worker's service, one NAME=value a line. A restart heeds changes.
"""


class CannotInstall(LabApexError):
    """A tool of the system refused; the message is its own."""


class Record(Message):
    """What an installation made. `home` is the worker's folder, with its key, its jobs and its log."""

    user: str
    user_made: bool
    home: Path
    files: tuple[Path, ...]  # and links
    folders: tuple[Path, ...]  # each after the one that it lies in

    @field_validator("home", "files", "folders")
    @classmethod
    def _plain(cls, value: Path | tuple[Path, ...]) -> Path | tuple[Path, ...]:
        for path in value if isinstance(value, tuple) else (value,):
            if not path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{path} is no plain absolute path")
        return value


@dataclass(frozen=True)
class Place:
    """Where a worker is installed: for the whole system, perhaps below another root (an image), or for one user."""

    system: bool
    home: Path
    settings: Path
    units: Path
    root: Path = Path("/")

    @classmethod
    def of_system(cls, root: Path = Path("/")) -> Place:
        return cls(True, SYSTEM_HOME, Path("/etc") / unit.NAME, Path("/etc/systemd/system"), root.absolute())

    @classmethod
    def of_user(cls, home: Home) -> Place:
        settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return cls(False, home.path, settings / unit.NAME, settings / "systemd" / "user")

    @property
    def environment(self) -> Path:
        return self.settings / "environment"

    @property
    def record(self) -> Path:
        return self.settings / "installed.json"

    @property
    def service(self) -> Path:
        return self.units / unit.SERVICE

    @property
    def link(self) -> Path:
        """What `systemctl enable` makes."""
        return self.units / f"{unit.wanted_by(system=self.system)}.wants" / unit.SERVICE

    def at(self, path: Path) -> Path:
        """A path of the installed system, as it is reached from here."""
        return self.root / path.relative_to("/")

    def load(self) -> Record | None:
        """What was installed here. Raises `UsageError` where the record cannot be read."""
        try:
            return parse(Record, self.at(self.record).read_bytes(), limit=1 << 20)
        except FileNotFoundError:
            return None
        except MalformedInput as error:
            raise UsageError(f"{self.at(self.record)} cannot be used: {error}") from None


def install(place: Place, *, user: str | None = None, python: Path = Path(sys.executable)) -> Record:
    """Make user, folders and unit. Once more on the same place it mends what is missing and keeps the worker's folder.

    `user` names an existing one instead of a user of its own. Raises `UsageError` or `CannotInstall`."""
    before = place.load()
    name = user or (before.user if before else USER) if place.system else pwd.getpwuid(os.geteuid()).pw_name
    there = _account(place, name)
    if user is not None and there is None:
        raise UsageError(f"there is no user '{name}' in {place.at(Path('/etc/passwd'))}; leave --user away to make one")
    makes_user = there is None
    files = (place.service, place.link, place.environment, place.record, *(_BESIDE if makes_user else ()))
    new_files = [path for path in files if not os.path.lexists(place.at(path))]
    record = Record(
        user=name,
        user_made=makes_user or bool(before and before.user_made),
        home=place.home,
        files=tuple(dict.fromkeys([*(before.files if before else ()), *new_files])),
        folders=tuple(dict.fromkeys([*(before.folders if before else ()), *_missing(place, files)])),
    )
    for folder in record.folders:
        place.at(folder).mkdir(exist_ok=True)
    _write(place.at(place.record), record.model_dump_json(indent=2) + "\n")
    if makes_user:
        _add_user(place, name)
    if not place.at(place.environment).exists():
        _write(place.at(place.environment), _ENVIRONMENT)
    _make_home(place, name)
    _write(place.at(place.service), _unit(place, name, python))
    if not os.path.lexists(place.at(place.link)):
        place.at(place.link).symlink_to(place.service)
    return record


def remove(place: Place, record: Record) -> None:
    """Take away all that an installation made, and the worker's folder. No process of the worker may run any more.

    Raises `CannotInstall` where something is left."""
    try:
        Folder(place.at(record.home)).remove()
    except OSError as error:
        raise CannotInstall(f"{error}; is something mounted in it?") from None
    mine = [path for path in record.files if path != place.record]
    for path in mine:
        if path not in _BESIDE:
            place.at(path).unlink(missing_ok=True)
    if record.user_made and _account(place, record.user) is not None:
        _call("userdel", *_prefix(place), record.user)
        if _has_group(place, record.user):  # userdel takes it along only where login.defs says so
            _call("groupdel", *_prefix(place), record.user)
    for path in mine:  # with what userdel leaves
        place.at(path).unlink(missing_ok=True)
    place.at(place.record).unlink(missing_ok=True)  # last: it tells what there is to remove
    for folder in reversed(record.folders):
        try:
            place.at(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            if not any(place.at(folder).iterdir()):
                raise
            # somebody else keeps something in it by now


def _missing(place: Place, files: Sequence[Path]) -> list[Path]:
    """The folders of these files, and that of the worker's folder, that are not there; outermost first."""
    wanted = {parent for path in (*files, place.home) for parent in path.parents}
    return sorted((path for path in wanted if not place.at(path).exists()), key=lambda path: len(path.parts))


def _unit(place: Place, user: str, python: Path) -> str:
    return unit.text(
        command=[str(python), "-m", "labapex_worker.cli", "run"],
        home=place.home,
        environment=place.environment,
        user=user if place.system else None,
        reads=(python, python.resolve(), *own_site_packages()),
        config=Home(place.home).config,
        systemd=_systemd_version() if place.root == Path("/") else None,
    )


def _systemd_version() -> int | None:
    """Of this host's systemd; None where it has none, or it does not tell."""
    try:
        said = subprocess.run(["systemctl", "--version"], env=_TOOLS, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.match(r"systemd ([0-9]{1,5})\b", said)
    return int(found[1]) if found else None


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.chmod(0o644)
    part.replace(path)


def _make_home(place: Place, user: str) -> None:
    home = Home(place.at(place.home))
    if home.path.exists():
        return
    home.path.mkdir(mode=0o700)
    account = _account(place, user)
    if place.system and account is not None and os.geteuid() == 0:
        os.chown(home.path, *account)


def _account(place: Place, name: str) -> tuple[int, int] | None:
    """User and group id of a user of the installed system."""
    table = place.at(Path("/etc/passwd"))
    if place.root == Path("/"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return None
        return entry.pw_uid, entry.pw_gid
    if not table.is_file():
        raise UsageError(f"{table} is missing; --root takes the folder of a whole system")
    for line in table.read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) == 7:
            return int(fields[2]), int(fields[3])
    return None


def _has_group(place: Place, name: str) -> bool:
    table = place.at(Path("/etc/group")).read_text()
    return any(line.split(":")[0] == name for line in table.splitlines())


def _add_user(place: Place, name: str) -> None:
    home, shell = ["--home-dir", str(place.home), "--no-create-home"], ["--shell", "/usr/sbin/nologin"]
    _call("useradd", *_prefix(place), "--system", "--user-group", *home, *shell, name)


def _prefix(place: Place) -> list[str]:
    return [] if place.root == Path("/") else ["--prefix", str(place.root)]


def _call(*command: str) -> None:
    if shutil.which(command[0], path=_TOOLS["PATH"]) is None:
        raise CannotInstall(f"{command[0]} is missing; install the package passwd, or name an existing user by --user")
    done = subprocess.run(command, env=_TOOLS, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotInstall(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
