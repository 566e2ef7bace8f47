"""A job's packages, and torch for hosts that have none, as folders of unpacked wheels, made outside of the sandbox and shown to
it read-only.

Nothing of a wheel is executed to make it: a wheel is a ZIP file whose content goes to one place, and its scripts, data files and
`.pth` files are left out. Wheels are written by strangers, so their hashes are those of the lock, or nothing of them is
read; no name leads out of the folder; sizes are counted while they are written.

A `Store` keeps such folders by the digest of their lock. A folder has its name from the moment that it is complete:

    STORE/<digest>/packages/    what is mounted
    STORE/<digest>/used         its size in bytes; its time is that of the last use, and who holds its lock uses it now
    STORE/draft-*/              one that is being made, locked by its maker; a draft that nobody locks is rubbish
    STORE/lock                  who has it looks around, makes room, takes hold
"""

from __future__ import annotations

import compileall
import contextlib
import errno
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from labapex import sandbox
from labapex.errors import LabApexError, MalformedInput, Tampered
from labapex.protocol.canonical import digest
from labapex.protocol.requirements import PACKAGES_SETTING, Lock, Wheel

INSIDE = Path("/packages")  # where a job finds them in the sandbox
MAX_FILES = 200_000  # of one environment
MAX_DIRECTORY = 16 << 20  # bytes of a wheel's list of files
RESERVED = frozenset({"labapex", "labapex_runner"})
"""Modules that a wheel may not bring: they come from the runner. So do those of the packages given to a lock."""
TORCH = frozenset({"torch", "torchgen", "functorch"})
"""Nor may one bring these, unless its lock is that of torch itself."""

_CHUNK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENCRYPTED = 1  # general purpose flag of a ZIP entry
_END = struct.Struct(
    "<4s4H2LH"
)  # ZIP's end of central directory: magic, disks, entries, size, offset, comment's length
_LOCATOR_BYTES = 20  # of the 64-bit form, before it
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
_UNPACKED_PARTS = (
    "purelib",
    "platlib",
)  # of NAME.data/; scripts, headers and data belong nowhere in a folder of modules


class NoRoom(LabApexError):
    """An environment does not fit beside those in use; the message names the bytes."""


def mounted(box: sandbox.Confinement, packages: Path | None) -> sandbox.Confinement:
    """The confinement with a job's packages in it. None: the job has none."""
    if packages is None:
        return box
    inside = INSIDE if sandbox.available() is None else packages
    return replace(
        box,
        placed=(*box.placed, (packages, INSIDE)),
        environment={**box.environment, PACKAGES_SETTING: str(inside)},
    )


# -- wheels ------------------------------------------------------------------------------------------------------------


def unpack(lock: Lock, wheels: Mapping[Wheel, Path], folder: Path, *, limit: int) -> int:
    """Unpack all wheels of a lock into an empty folder; returns the bytes written, at most `limit`.

    Raises `Tampered` for a file that is not the lock's, `MalformedInput` for a wheel that is none, that holds modules which
    are not its to bring, or more than fits."""
    written = count = 0
    reserved = RESERVED | {package.name.replace("-", "_") for package in lock.given}
    reserved |= frozenset() if lock.supplies_torch else TORCH
    for wheel in lock.wheels:
        with _opened(wheel, wheels[wheel]) as archive:
            count += len(archive.infolist())
            if count > MAX_FILES:
                raise MalformedInput(f"the wheels hold more than {MAX_FILES} files")
            for entry in archive.infolist():
                if (place := _place(entry, wheel, reserved)) is not None:
                    written += _extract(archive, entry, folder / place, limit - written)
    for parent, _, _ in os.walk(folder):
        Path(parent).chmod(0o755)  # the sandbox's user looks in
    return written


@contextmanager
def _opened(wheel: Wheel, path: Path) -> Iterator[zipfile.ZipFile]:
    """The wheel, if it is byte for byte the lock's. What is wrong with it is `Tampered` or `MalformedInput`."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != wheel.size:
            raise Tampered(f"{wheel.file} does not have the {wheel.size} bytes that were locked")
        if hashlib.file_digest(file, "sha256").hexdigest() != wheel.sha256:
            raise Tampered(f"{wheel.file} is not the file that was locked")
        try:
            _bound_directory(file)
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise MalformedInput(f"{wheel.file} holds a file where there is a folder") from None
        except _BROKEN as error:
            raise MalformedInput(f"{wheel.file} is no wheel: {error}") from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # else the directory names a place before the file's beginning
                raise
            raise MalformedInput(f"{wheel.file} is no wheel: {error}") from None


def _bound_directory(file: BinaryIO) -> None:
    """`ZipFile` reads all of an archive's directory into memory: look how long it says it is.

    The directory's end must be the file's end (no comment), and in the plain form, which Python then takes, too."""
    end = max(0, file.seek(0, os.SEEK_END) - _END.size - _LOCATOR_BYTES)
    file.seek(end)
    tail = file.read()
    if len(tail) < _END.size:
        raise zipfile.BadZipFile("it is too short")
    magic, *_, size, _, comment = _END.unpack(tail[-_END.size :])
    if magic != b"PK\x05\x06" or comment or tail.startswith(b"PK\x06\x07") or size > MAX_DIRECTORY:
        raise zipfile.BadZipFile(f"it has no plain directory of at most {MAX_DIRECTORY} bytes at its end")


def _place(entry: zipfile.ZipInfo, wheel: Wheel, reserved: Collection[str]) -> PurePosixPath | None:
    """Where an entry belongs in the folder; None for what is left out. Raises `MalformedInput`."""
    text = entry.filename
    path = PurePosixPath(text)
    if (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in text
        or ":" in text
        or not text.isprintable()
        or not path.parts
    ):
        raise MalformedInput(
            f"{wheel.file} holds a file with the name {text[:200]!r}, which may lead out of its folder"
        )
    if entry.flag_bits & _ENCRYPTED:
        raise MalformedInput(f"{wheel.file} is encrypted")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise MalformedInput(f"{wheel.file} holds a link or a device: {text[:200]!r}")
    if entry.is_dir():
        return None  # folders come with their files
    if path.parts[0].endswith(".data"):
        if len(path.parts) < 3 or path.parts[1] not in _UNPACKED_PARTS:
            return None
        path = PurePosixPath(*path.parts[2:])
    if len(path.parts) == 1 and path.suffix == ".pth":
        return None  # lines of it would be executed at the start of an interpreter; here nobody reads it
    if (module := path.parts[0].partition(".")[0]) in reserved:
        raise MalformedInput(
            f"{wheel.file} holds the module '{module}', which the hosts bring along; use another package"
        )
    return path


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise MalformedInput(f"the unpacked wheels are larger than they may be ({entry.filename[:200]!r})")
            file.write(chunk)
        os.fchmod(file.fileno(), 0o755 if entry.external_attr >> 16 & 0o111 else 0o644)
    return written


def _compile(folder: Path) -> int:
    """Compile torch's two thousand modules once, and not at each start of a job; returns the bytes written. Nothing of them is
    executed. What this Python cannot compile is left as it is."""
    compileall.compile_dir(folder, quiet=2)
    return sum(path.stat().st_size for path in folder.rglob("*.pyc"))


# -- folders -----------------------------------------------------------------------------------------------------------


class Store:
    """Environments below `root`, of at most `quota` bytes together. Several processes may share one."""

    def __init__(self, root: Path, quota: int) -> None:
        self._root, self._quota = root, quota

    def find(self, key: str) -> Path | None:
        """The packages of the lock with this digest, if they are here."""
        packages = self._root / key / "packages"
        return packages if packages.is_dir() else None

    def make(self, lock: Lock, wheels: Mapping[Wheel, Path], *, keep: Collection[str] = ()) -> Path:
        """The packages of a lock, unpacked unless they are here; whatever was used longest ago makes room.

        What is in `keep`, or held, stays. Raises `NoRoom`, and what `unpack` raises."""
        key = digest(lock)
        final = self._root / key
        if self.find(key) is None:
            with self._draft(lock, wheels, keep) as draft:
                (draft / "packages").mkdir()
                size = unpack(lock, wheels, draft / "packages", limit=self._quota)
                if lock.supplies_torch:
                    size += _compile(draft / "packages")
                (draft / "used").write_text(str(size))
                os.sync()  # a power failure must not leave the name without its content
                try:
                    draft.rename(final)
                except OSError:
                    if self.find(key) is None:  # else another maker was first
                        raise
        os.utime(final / "used")
        return final / "packages"

    @contextmanager
    def held(self, lock: Lock, wheels: Mapping[Wheel, Path]) -> Iterator[Path]:
        """`make`; the folder stays as long as this lasts."""
        key = digest(lock)
        while True:
            self.make(lock, wheels)
            with contextlib.ExitStack() as stack:
                with self._guard():
                    if (packages := self.find(key)) is None:
                        continue  # it made room for another since
                    used = stack.enter_context((self._root / key / "used").open("rb"))
                    fcntl.flock(used, fcntl.LOCK_SH)
                yield packages
                return

    def sweep(self) -> None:
        """Remove what makers that were killed left behind."""
        if self._root.is_dir():
            with self._guard():
                self._sweep()

    def _sweep(self) -> None:
        for draft in self._root.glob("draft-*"):
            with _locked(draft) as free:
                if free:
                    shutil.rmtree(draft)

    @contextmanager
    def _draft(self, lock: Lock, wheels: Mapping[Wheel, Path], keep: Collection[str]) -> Iterator[Path]:
        """A new folder for a lock's packages, for which there is room; it goes unless it got its name."""
        needed = sum(_claimed_size(wheel, wheels[wheel]) for wheel in lock.wheels)
        if needed > self._quota:
            raise MalformedInput(f"the packages take {needed} bytes unpacked; at most {self._quota} are taken here")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with self._guard():
                self._sweep()
                self._make_room(needed, keep)
                draft = Path(tempfile.mkdtemp(prefix="draft-", dir=self._root))
                stack.callback(shutil.rmtree, draft, ignore_errors=True)
                stack.enter_context(_locked(draft))
                draft.chmod(0o755)
            yield draft

    def _make_room(self, needed: int, keep: Collection[str]) -> None:
        there = {
            path: int((path / "used").read_text()) for path in self._root.iterdir() if _DIGEST.fullmatch(path.name)
        }
        left = self._quota - needed - sum(there.values())
        for path in sorted(there, key=lambda each: (each / "used").stat().st_mtime):
            if left >= 0:
                return
            if path.name in keep:
                continue
            with _locked(path / "used") as free:
                if free:
                    rubbish = path.rename(path.with_name(f"draft-{path.name}"))  # nobody finds it half removed
                    shutil.rmtree(rubbish)
                    left += there[path]
        if left < 0:
            raise NoRoom(
                f"the packages take {needed} bytes unpacked; {self._quota} bytes are set aside for packages here, of"
                f" which {self._quota - needed - left} are in use"
            )

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One at a time looks, makes room and takes hold."""
        with (self._root / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _claimed_size(wheel: Wheel, path: Path) -> int:
    """What a wheel says that it unpacks to. It may lie; `unpack` counts."""
    with _opened(wheel, path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or folder; False where somebody else has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
