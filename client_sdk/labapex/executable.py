"""The file that a worker downloads and starts: laid out by the platform, verified by the agent, unpacked by itself.

    [bootloader ELF][section 0 .. n][manifest][signature 64][trailer 48][PyInstaller archive .. cookie]

The trailer stands before the archive because the bootloader finds its archive from the end of the file; the start of the
archive follows from its cookie. Every byte is covered: bootloader and archive by the runner digest, sections by their
digests, the manifest by the signature, and trailer and cookie must say exactly what the manifest implies.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from labapex import sealing
from labapex.errors import MalformedInput, Tampered
from labapex.protocol.canonical import canonical, parse
from labapex.protocol.manifest import MAX_MANIFEST, Index, Manifest, Section
from labapex.trust import Trust

MAX_INDEX = 16 << 20
SIGNATURE_BYTES = 64
CHUNK = 1 << 20
_TRAILER = struct.Struct(">16sQQ16s")
_MAGIC, _END = b"labapex-exec--01", b"labapex-end---01"
_COOKIE = struct.Struct("!8sIIII64s")  # PyInstaller's CArchive cookie: magic, archive length, table offset, ...
_COOKIE_MAGIC = b"MEI\014\013\012\013\016"


# -- making one --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runner:
    """The frozen runner as `labapex_runner.build` leaves it: two files, and the digest of their concatenation."""

    bootloader: Path
    archive: Path
    bootloader_size: int
    archive_size: int
    digest: str


def load_runner(folder: Path) -> Runner:
    """The runner in a build folder. Reads 30 MB to digest it: call it once a process. Raises `MalformedInput`."""
    bootloader, archive = folder / "bootloader", folder / "runner.pkg"
    digest = hashlib.sha256()
    try:
        for part in (bootloader, archive):
            with part.open("rb") as file:
                for chunk in iter(lambda: file.read(CHUNK), b""):
                    digest.update(chunk)
    except FileNotFoundError:
        raise MalformedInput(
            f"no runner in {folder}; build it: python -m labapex_runner.build --out {folder}"
        ) from None
    sizes = bootloader.stat().st_size, archive.stat().st_size
    return Runner(bootloader, archive, *sizes, digest.hexdigest())


@dataclass(frozen=True)
class Layout:
    """An executable that need not exist as a file: its parts in order, and its size in bytes."""

    parts: tuple[bytes | Path, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def stream(self, offset: int = 0, chunk_size: int = CHUNK) -> Iterator[bytes]:
        """The bytes from `offset` on, at most `chunk_size` at a time; raises `MalformedInput` if a file was cut."""
        if not 0 <= offset <= self.size:
            raise ValueError(f"offset {offset} in a file of {self.size} bytes")
        for part, size in zip(self.parts, self.sizes, strict=True):
            if offset >= size:
                offset -= size
            elif isinstance(part, bytes):
                yield from (part[at : at + chunk_size] for at in range(offset, size, chunk_size))
                offset = 0
            else:
                yield from _stream_file(part, offset, size, chunk_size)
                offset = 0


def layout(runner: Runner, sections: Sequence[bytes | Path], manifest: Manifest, signature: bytes) -> Layout:
    """Lay out an executable. `sections` are what the manifest's sections describe: sealed bytes, or files of them.

    Raises `MalformedInput` where runner, sections and manifest do not belong together; digests are left to `verify`."""
    if (runner.digest, runner.bootloader_size, runner.archive_size) != (
        manifest.runner,
        manifest.bootloader_size,
        manifest.archive_size,
    ):
        raise MalformedInput("the manifest was made for another runner; make a new one")
    if len(sections) != len(manifest.sections) or len(signature) != SIGNATURE_BYTES:
        raise MalformedInput(f"{len(sections)} sections, but the manifest names {len(manifest.sections)}")
    for number, (part, section) in enumerate(zip(sections, manifest.sections, strict=True)):
        if _size(part) != section.size:
            raise MalformedInput(f"section {number} has {_size(part)} bytes, but the manifest says {section.size}")
    text = canonical(manifest)
    start = runner.bootloader_size + sum(section.size for section in manifest.sections)
    trailer = _TRAILER.pack(_MAGIC, start, len(text), _END)
    parts: tuple[bytes | Path, ...] = (runner.bootloader, *sections, text, signature, trailer, runner.archive)
    sizes = (
        runner.bootloader_size,
        *(section.size for section in manifest.sections),
        *(len(text), SIGNATURE_BYTES, _TRAILER.size),
        runner.archive_size,
    )
    return Layout(parts, sizes)


def write(path: Path, made: Layout) -> None:
    """Write an executable to a file that only its owner may run."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
    with os.fdopen(descriptor, "wb") as file:
        for chunk in made.stream():
            file.write(chunk)


def _size(part: bytes | Path) -> int:
    return len(part) if isinstance(part, bytes) else part.stat().st_size


def _stream_file(path: Path, offset: int, size: int, chunk_size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        left = size - offset
        while left:
            chunk = file.read(min(chunk_size, left))
            if not chunk:
                raise MalformedInput(f"{path.name} became shorter while it was sent")
            left -= len(chunk)
            yield chunk


# -- reading one -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inspection:
    """What a file says of itself. Nothing in it is verified."""

    manifest: Manifest
    canonical_text: bytes
    signature: bytes


def inspect(path: Path) -> Inspection:
    """Read an executable's manifest WITHOUT verifying anything; raises `MalformedInput` if it is no executable."""
    with path.open("rb") as file:
        return _inspect(file)


def read_trailer(file: BinaryIO) -> tuple[int, int, int]:
    """(offset of the manifest, its size, offset of the archive); raises `MalformedInput`."""
    end = file.seek(0, os.SEEK_END)
    if end < _COOKIE.size + _TRAILER.size:
        raise MalformedInput("not an executable of Lab Apex: too short")
    file.seek(end - _COOKIE.size)
    magic, archive_size, *_ = _COOKIE.unpack(file.read(_COOKIE.size))
    archive = end - archive_size
    if magic != _COOKIE_MAGIC or archive < _TRAILER.size:
        raise MalformedInput("not an executable of Lab Apex: it does not end with a PyInstaller archive")
    file.seek(archive - _TRAILER.size)
    magic, start, size, closing = _TRAILER.unpack(file.read(_TRAILER.size))
    if magic != _MAGIC or closing != _END:
        raise MalformedInput("this runner carries no job; it knows the modes preflight and replay only")
    if size > MAX_MANIFEST or start + size + SIGNATURE_BYTES + _TRAILER.size != archive:
        raise MalformedInput("not an executable of Lab Apex: its trailer points elsewhere")
    return start, size, archive


def _inspect(file: BinaryIO) -> Inspection:
    start, size, archive = read_trailer(file)
    file.seek(start)
    text = _exactly(file, size)
    signature = _exactly(file, SIGNATURE_BYTES)
    manifest = parse(Manifest, text, limit=MAX_MANIFEST)
    if canonical(manifest) != text:
        raise Tampered("the manifest is not in canonical form")
    sections = sum(section.size for section in manifest.sections)
    if manifest.bootloader_size + sections != start or archive + manifest.archive_size != file.seek(0, os.SEEK_END):
        raise Tampered("the file holds more or less than its manifest names")
    return Inspection(manifest, text, signature)


def verify(path: Path, trust: Trust, worker: UUID, now: float) -> Manifest:
    """The manifest, if this file is byte for byte what the platform signed for this worker, and may be started now.

    `trust` says which keys and runners count, `now` is Unix time. Streams the file once in constant memory. Raises
    `MalformedInput` or its subclass `Tampered`; the file must then not be started.
    """
    with path.open("rb") as file:
        found = _inspect(file)
        manifest = authorised(found, trust, worker, now)  # before anything else in it is believed
        file.seek(0)
        runner = hashlib.sha256()
        _digest(file, manifest.bootloader_size, runner)
        for number, section in enumerate(manifest.sections):
            seen = hashlib.sha256()
            _digest(file, section.size, seen)
            if not hmac.compare_digest(seen.hexdigest(), section.digest):
                raise Tampered(f"section {number} is not what the platform signed; fetch the executable again")
        file.seek(len(found.canonical_text) + SIGNATURE_BYTES + _TRAILER.size, os.SEEK_CUR)
        _digest(file, manifest.archive_size, runner)
        if not hmac.compare_digest(runner.hexdigest(), manifest.runner):
            raise Tampered("the runner is not what the platform signed; fetch the executable again")
        return manifest


def authorised(found: Inspection, trust: Trust, worker: UUID, now: float) -> Manifest:
    """The manifest, if it is signed for this worker and may be acted on now; of the file's other bytes nothing is looked at.

    Raises `Tampered`, or `NotTrusted` where a key or the runner does not count."""
    manifest = found.manifest
    trust.verify(found.canonical_text, found.signature, key=manifest.key, role="manifest", now=now)
    if manifest.worker != worker:
        raise Tampered(f"this executable was made for worker {manifest.worker}")
    if not now < manifest.expires_at:  # a clock that says NaN is late
        raise Tampered("this executable has expired; ask the platform for a new lease")
    trust.release(manifest.release, "runner", now)
    return manifest


def _digest(file: BinaryIO, size: int, into: hashlib._Hash) -> None:
    while size:
        chunk = _exactly(file, min(size, CHUNK))
        into.update(chunk)
        size -= len(chunk)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise Tampered("the file is shorter than its manifest says; fetch the executable again")
    return data


# -- opening one -------------------------------------------------------------------------------------------------------


def seal_index(index: Index, content_key: bytes) -> bytes:
    """Section 0: the index, sealed under the job's content key."""
    return sealing.seal_bytes(canonical(index), content_key)


def describe(sealed: bytes) -> Section:
    """The manifest's entry for sealed bytes."""
    return Section(digest=hashlib.sha256(sealed).hexdigest(), size=len(sealed))


def unpack(path: Path, manifest: Manifest, content_key: bytes, folder: Path) -> None:
    """Open every section of an executable into `folder`, made (0700) if need be; none of the files may exist yet.

    Raises `Tampered` where a section does not open under the keys or holds other bytes than the index says.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("rb") as file:
        file.seek(manifest.bootloader_size)
        first, *others = manifest.sections
        if first.size > MAX_INDEX:
            raise MalformedInput(f"an index of {first.size} bytes; at most {MAX_INDEX} are accepted")
        index = parse(Index, sealing.open_bytes(_exactly(file, first.size), content_key), limit=MAX_INDEX)
        if len(index.entries) != len(others):
            raise Tampered("the index does not describe the sections that are there")
        for entry, section in zip(index.entries, others, strict=True):
            target = folder / entry.path  # `BundlePath` allows no way out of the folder
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                opened = sealing.open_stream(_Window(file, section.size), out, bytes.fromhex(entry.key))
            if (opened.digest_plain, opened.size) != (entry.digest, entry.size):
                raise Tampered(f"{entry.path} holds other bytes than the index says")


class _Window:
    """The next `size` bytes of a file, as something to read from."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int, /) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data
