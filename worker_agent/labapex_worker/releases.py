"""The agent's own releases: fetched and checked like everything else, and put beside the version that runs.

HOME/agent/
  <version>/        a released wheel, unpacked
  <digest>.whl      a wheel that is being downloaded
  current           link to the version that `labapex-worker run` starts; absent: the one that the owner installed
  previous          link to the one before, where there was one
  trying            a line with the version for each start of it, until it has come up
  failed            digests of those that did not come up, one a line: they are not tried again

What the owner installed is never touched. It starts the newer version (`launch.py`), and takes over where that does not come
up. A release brings its own modules, not its dependencies: those stay as they were installed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import stat
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

import httpx

from labapex.errors import LabApexError, PlatformUnreachable, Tampered
from labapex.protocol.canonical import parse
from labapex.protocol.trust import Release, SignedRelease, order
from labapex_worker import downloads, launch
from labapex_worker.config import Home

log = logging.getLogger(__name__)

PATH = "/gateway/releases/agent"
MAX_STATEMENT = 64 << 10
MAX_WHEEL = 32 << 20
MAX_UNPACKED = 128 << 20
MAX_FILES = 5000
TRIES = 5  # of a download, in a row without a byte of progress
PACKAGES = ("labapex", "labapex_worker", "labapex_runner")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class UpdateFailed(LabApexError):
    """A release cannot be put in place; the version that runs goes on."""


def running() -> str:
    """The version of this program."""
    try:
        return version("labapex")
    except PackageNotFoundError:
        return "0"


class Shelf:
    """HOME/agent: the versions that lie on this host."""

    def __init__(self, home: Home) -> None:
        self.path = home.path / "agent"
        self.current, self.previous = self.path / "current", self.path / "previous"
        self.trying, self.failed = self.path / "trying", self.path / "failed"

    def newest(self) -> str | None:
        """The version that `current` leads to, if that is newer than this program."""
        if not self.current.is_symlink() or not self.current.is_dir():
            return None
        name = self.current.readlink().name
        return name if order(name) > order(running()) else None

    def has_failed(self, digest: str) -> bool:
        return self.failed.exists() and digest in self.failed.read_text().split()

    def holds(self, release: Release) -> bool:
        """Whether this very release is unpacked here."""
        mark = self.path / release.version / launch.MARK
        return mark.exists() and mark.read_text() == release.digest

    def unpack(self, wheel: IO[bytes], release: Release) -> None:
        """Put a wheel, whose digest was compared, beside the other versions. Raises `UpdateFailed`."""
        final, draft = self.path / release.version, self.path / f"{release.version}.part"
        for left in (draft, final):
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        try:
            with zipfile.ZipFile(wheel) as archive:
                _unpack(archive, draft, release.version)
        except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError) as error:
            raise UpdateFailed(f"the wheel of {release.version} cannot be unpacked: {error}") from None
        (draft / launch.MARK).write_text(release.digest)
        draft.rename(final)

    def switch(self, name: str) -> None:
        """Start this version from the next `run` on; drop all others but the one before."""
        before = self.current.readlink().name if self.current.is_symlink() else None
        if before is not None and before != name:
            _point(self.previous, before)
        _point(self.current, name)
        self.trying.unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in (name, before):
                shutil.rmtree(path, ignore_errors=True)

    def go_back(self) -> str | None:
        """After a start that failed, or two that nobody knows the end of: the version before counts again.

        Returns the one that failed, if there was one."""
        tried = self.trying.read_text().split() if self.trying.exists() else []
        if len(tried) < launch.TRIES:
            return None
        name = tried[-1]
        mark = self.path / name / launch.MARK
        if self.current.is_symlink() and self.current.readlink().name == name:
            if mark.exists():
                with self.failed.open("a") as file:
                    file.write(mark.read_text() + "\n")
            self.current.unlink()
            if self.previous.is_symlink() and self.previous.is_dir():
                self.previous.rename(self.current)
        self.trying.unlink()
        return name

    def came_up(self) -> None:
        """This program runs: it need not be gone back from."""
        self.trying.unlink(missing_ok=True)


def hand_over(home: Home) -> None:
    """Become the newest version, where it is newer than this one; else return."""
    shelf = Shelf(home)
    if launch.SETTING in os.environ:
        return
    if (failed := shelf.go_back()) is not None:
        log.error("version %s of the agent did not come up; going on with the one before", failed)
    if (name := shelf.newest()) is not None:
        log.info("starting version %s of the agent", name)
        launch.become(shelf.path / name, sys.argv[1:])


def restart() -> NoReturn:
    """Begin anew with what the owner installed; that hands over to the newest."""
    launch.begin_anew(sys.argv[1:])


# -- fetching ----------------------------------------------------------------------------------------------------------


async def look(http: httpx.AsyncClient) -> SignedRelease | None:
    """What the platform offers, not judged yet. Raises `LabApexError` where it cannot be read."""
    try:
        data = await downloads.document(http, PATH, limit=MAX_STATEMENT, what="statement of the agent's release")
    except PlatformUnreachable as error:
        raise UpdateFailed(str(error)) from None
    return None if data is None else parse(SignedRelease, data, limit=MAX_STATEMENT)


def wanted(release: Release, shelf: Shelf) -> bool:
    """Whether to take a release that may be run. Raises `UpdateFailed` where this host cannot."""
    if order(release.version) <= order(running()) or shelf.has_failed(release.digest):
        return False
    if release.python != PYTHON:
        raise UpdateFailed(
            f"version {release.version} of the agent needs Python {release.python}, this is {PYTHON}: install it by hand"
        )
    if release.size > MAX_WHEEL:
        raise UpdateFailed(f"version {release.version} of the agent has {release.size} bytes; {MAX_WHEEL} are taken")
    return True


async def fetch(http: httpx.AsyncClient, release: Release, shelf: Shelf) -> None:
    """Download a release, going on where an earlier try stopped, compare its digest, and unpack it.

    Raises `UpdateFailed`, `Tampered` or `OSError`; then nothing has changed but what was downloaded."""
    if shelf.holds(release):
        return
    shelf.path.mkdir(mode=0o700, exist_ok=True)
    path = shelf.path / f"{release.digest}.whl"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        await _download(http, release, file)
        path.unlink()  # the open file is all that is needed; whatever is wrong with it is not found again
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != release.digest:
            raise Tampered(f"version {release.version} of the agent is not what was released")
        file.seek(0)
        await asyncio.to_thread(shelf.unpack, file, release)
    log.info("version %s of the agent is here", release.version)


async def _download(http: httpx.AsyncClient, release: Release, file: IO[bytes]) -> None:
    failures = 0
    while (have := file.seek(0, os.SEEK_END)) < release.size:
        try:
            await _download_once(http, release, file, have)
        except (httpx.TransportError, httpx.StreamError) as error:
            log.warning("the download of the agent stopped: %s", error or type(error).__name__)
        failures = 0 if file.tell() > have else failures + 1
        if failures == TRIES:
            raise UpdateFailed(f"the platform does not hand out version {release.version} of the agent")
    if have > release.size:
        file.truncate(0)
        raise Tampered(f"version {release.version} of the agent has more bytes than were released")


async def _download_once(http: httpx.AsyncClient, release: Release, file: IO[bytes], have: int) -> None:
    async with http.stream("GET", f"{PATH}/{release.digest}", headers=downloads.from_byte(have)) as response:
        if response.status_code not in (200, 206):
            raise UpdateFailed(f"the platform refuses the agent with status {response.status_code}")
        what = f"version {release.version} of the agent"
        await downloads.go_on(response, file, have=have, size=release.size, what=what)


# ----------------------------------------------------------------------------------------------------------------------


def _unpack(archive: zipfile.ZipFile, folder: Path, name: str) -> None:
    """Our packages and the wheel's own description, regular files only, no more than is sensible."""
    left, entries = MAX_UNPACKED, archive.infolist()
    if len(entries) > MAX_FILES:
        raise UpdateFailed(f"the wheel of {name} has {len(entries)} files")
    for entry in entries:
        path = PurePosixPath(entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        strange = "\\" in entry.filename or path.is_absolute() or ".." in path.parts or kind not in (0, stat.S_IFREG)
        if entry.is_dir():
            continue
        if strange or path.parts[0] not in (*PACKAGES, f"labapex-{name}.dist-info"):
            raise UpdateFailed(f"the wheel of {name} holds what is not the agent's: {entry.filename[:100]!r}")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as out:
            while chunk := source.read(1 << 16):
                left -= len(chunk)
                if left < 0:
                    raise UpdateFailed(f"the wheel of {name} unpacks to more than {MAX_UNPACKED} bytes")
                out.write(chunk)
    if not (folder / f"labapex-{name}.dist-info" / "METADATA").is_file():
        raise UpdateFailed(f"the wheel says that it is another version than {name}")


def _point(link: Path, name: str) -> None:
    """Make or move a link, at once."""
    fresh = link.with_name(f".{link.name}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(name)
    fresh.rename(link)
