"""Uploaded files: taken in as a stream, digested and sealed on the way, and never in plaintext on disk.

An upload that breaks off is kept, sealed as it is, and goes on where it was: `begun` says where. Its file below `uploads` is
named by its digest and its wrapped key, and is locked by whoever writes it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Sum

from labapex.errors import Tampered
from labapex.sealing import Sealed, new_key, open_stream, seal_on, seal_stream, sealed_so_far
from labapex_server.accounts.models import User
from labapex_server.accounts.services import lock
from labapex_server.jobs.models import Blob
from labapex_server.lib import clock, keys
from labapex_server.lib import store as files
from labapex_server.lib.errors import DigestMismatch, OffsetMismatch, OverQuota, Refused, TooLarge
from labapex_server.lib.files import modified_at, size_of


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def find(owner: User, digest: str) -> Blob | None:
    """The owner's file with this digest. Who looks for one wants it: it stays for a while, though no job has it yet."""
    found = Blob.objects.filter(owner=owner, digest=digest).first()
    if found is not None and found.wanted_at < clock.now() - _LOOKED:
        Blob.objects.filter(pk=found.pk).update(wanted_at=clock.now())
    return found


KEPT_SECONDS = 24 * 3600
"""For how long an upload that broke off can go on."""

_MAX_BEGUN = 64  # of an owner
_LOOKED = timedelta(hours=1)  # within which a file is not marked as wanted again


def begun(owner: User, digest: str) -> int:
    """How many bytes of an upload that broke off are here: from there it can go on."""
    return max((sealed_so_far(path.stat().st_size) for path in _begun(owner, digest)), default=0)


def store(owner: User, digest: str, stream: Readable, *, size: int, offset: int = 0) -> tuple[Blob, bool]:
    """The blob with this digest, and whether it is new. `size` is the announced length of the whole, and `stream` begins at
    `offset`, which is 0 or what `begun` says. No more than announced is read.

    Raises `TooLarge` over the limit, `OverQuota` over the owner's, `Refused` for a stream that ends early, `OffsetMismatch`,
    and `DigestMismatch` for other bytes than announced. What came of a stream that ended early, or raised, is kept.
    """
    limit = settings.LABAPEX.blob_limit_bytes
    if size > limit:
        raise TooLarge(f"the file has {size} bytes; at most {limit} are accepted")
    if offset and not 0 < offset < size:
        raise OffsetMismatch(f"there is nothing at byte {offset} of {size}", begun(owner, digest))
    known = find(owner, digest)
    if known is not None and files.size(known.path) is not None:
        return known, False
    _check_room(owner, size, unfinished=unfinished_bytes(owner, besides=digest))
    with _unfinished(owner, digest, offset) as (file, path, key):
        rest = _Exactly(stream, size - offset)
        try:
            sealed = seal_on(rest, file, key) if offset else seal_stream(rest, file, key)
        except Tampered:  # the machine died while it was written
            path.unlink()
            raise OffsetMismatch("the beginning of this upload was damaged; send the file from its start", 0) from None
        file.flush()
        os.fsync(file.fileno())
        try:
            if sealed.digest_plain != digest:
                raise DigestMismatch("the bytes do not have the digest they were announced with; send the file again")
            return _enter(owner, digest, path, key, sealed)
        finally:
            path.unlink(missing_ok=True)


def open_into(blob: Blob, target: Path) -> None:
    """Write a blob's plaintext to a new file of mode 0600. Raises `Tampered` where the stored file was altered."""
    with open_sealed(blob) as sealed, _create(target) as plain:
        open_stream(sealed, plain, content_key(blob))


def open_sealed(blob: Blob) -> BinaryIO:
    """The sealed file, to read."""
    return files.fetch(blob.path).open("rb")


def content_key(blob: Blob) -> bytes:
    """The key that opens the sealed file."""
    return keys.unwrap(blob.wrapped_key, purpose(blob.owner_id, blob.digest))


def stored_bytes(owner: User) -> int:
    """What the owner's files take, sealed."""
    return Blob.objects.filter(owner=owner).aggregate(bytes=Sum("sealed_size"))["bytes"] or 0


def unfinished_bytes(owner: User, *, besides: str = "") -> int:
    """What uploads take that broke off or are under way; not that of `besides`."""
    folder: Path = settings.LABAPEX.home / "uploads" / str(owner.pk)
    paths = [path for path in folder.glob("*") if not besides or not path.name.startswith(besides)]
    return sum(size for path in paths if (size := size_of(path)) is not None)


def forget_unfinished(now: float) -> int:
    """Delete uploads that nobody went on with for a day. Returns how many. `now` is Unix time."""
    forgotten = 0
    for path in (settings.LABAPEX.home / "uploads").glob("*/*"):
        if (at := modified_at(path)) is not None and now - at > KEPT_SECONDS and (file := _locked(path)) is not None:
            with file:
                path.unlink(missing_ok=True)
            forgotten += 1
    return forgotten


def _check_room(owner: User, size: int, *, unfinished: int = 0) -> None:
    limit, used = settings.LABAPEX.account_bytes, stored_bytes(owner) + unfinished
    if limit and used + size > limit:
        raise OverQuota(
            f"your files take {used} bytes of your {limit}, and this one has {size}; delete those that no job needs"
            " (labapex delete --files), or ask the operator for more"
        )


def _begun(owner: User, digest: str) -> list[Path]:
    folder: Path = settings.LABAPEX.home / "uploads" / str(owner.pk)
    return sorted(folder.glob(f"{digest}.*")) if folder.is_dir() else []


@contextmanager
def _unfinished(owner: User, digest: str, offset: int) -> Iterator[tuple[BinaryIO, Path, bytes]]:
    """(file, its path, its key) of an upload that begins at `offset`, for this caller alone. Raises `OffsetMismatch`."""
    folder = settings.LABAPEX.private_folder("uploads", str(owner.pk))
    if offset:
        for path in _begun(owner, digest):
            if (file := _locked(path)) is None:
                continue
            if sealed_so_far(path.stat().st_size) == offset:
                key = keys.unwrap(bytes.fromhex(path.suffix[1:]), purpose(owner.pk, digest))
                break
            file.close()
        else:
            here = begun(owner, digest)
            raise OffsetMismatch(
                f"the upload goes on from byte {here}, not {offset}; or another one is under way", here
            )
    else:
        _clear(folder, digest)
        key = new_key()
        path = folder / f"{digest}.{keys.wrap(key, purpose(owner.pk, digest)).hex()}"
        file = _create(path)
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        yield file, path, key


def _clear(folder: Path, digest: str) -> None:
    """Forget uploads that nobody goes on with: of a file that is sent anew, a day old, and the oldest of too many."""
    listed = sorted(((path.stat().st_mtime, path) for path in folder.iterdir()), reverse=True)
    for number, (at, path) in enumerate(listed):
        old = number >= _MAX_BEGUN - 1 or time.time() - at > KEPT_SECONDS
        if (old or path.name.startswith(digest)) and (file := _locked(path)) is not None:
            with file:
                path.unlink(missing_ok=True)


def _locked(path: Path) -> BinaryIO | None:
    """The file, locked by us; None where another upload writes it, or it is gone."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    if not path.exists() or not path.samefile(f"/proc/self/fd/{file.fileno()}"):  # it got its final name meanwhile
        file.close()
        return None
    return file


def purpose(owner_id: int, digest: str) -> str:
    return f"blob:{owner_id}:{digest}"


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w+b")


def _enter(owner: User, digest: str, made: Path, key: bytes, sealed: Sealed) -> tuple[Blob, bool]:
    """Row and file belong together by key: of two uploads at once the first row wins, and only its file is kept."""
    blob = Blob(
        owner=owner,
        digest=digest,
        size=sealed.size,
        sealed_digest=sealed.sealed_digest,
        sealed_size=sealed.sealed_size,
        wrapped_key=keys.wrap(key, purpose(owner.pk, digest)),
        created_at=clock.now(),
        wanted_at=clock.now(),
    )
    files.keep(made, blob.path)
    try:
        with transaction.atomic():
            lock(owner)
            _check_room(owner, sealed.sealed_size)  # of several at once that had room, the last may have none
            blob.save(force_insert=True)
        return blob, True
    except OverQuota:
        files.delete(blob.path)
        raise
    except IntegrityError:
        first = Blob.objects.get(owner=owner, digest=digest)
    if files.size(first.path) is not None:
        files.delete(blob.path)
        return first, False
    blob.pk = first.pk  # the row outlived its file: a restored database, a lost disk
    blob.save(force_update=True)
    return blob, False


class _Exactly:
    """The next `size` bytes of a stream; raises `Refused` where it ends before."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int, /) -> bytes:
        wanted = min(size, self._left)
        data = self._stream.read(wanted) if wanted else b""
        if wanted and not data:
            raise Refused(f"the upload ended {self._left} bytes too early; go on from where it is, or send it again")
        self._left -= len(data)
        return data
