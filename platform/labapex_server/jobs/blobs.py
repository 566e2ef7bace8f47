"""Uploaded files: taken in as a stream, digested and sealed on the way, and never in plaintext on disk."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from django.conf import settings
from django.db import IntegrityError, transaction

from labapex.sealing import new_key, open_stream, seal_stream
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Blob
from labapex_server.lib import clock, keys
from labapex_server.lib.errors import DigestMismatch, Refused, TooLarge
from labapex_server.lib.files import fsync_folder


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def find(owner: User, digest: str) -> Blob | None:
    return Blob.objects.filter(owner=owner, digest=digest).first()


def store(owner: User, digest: str, stream: Readable, *, size: int) -> tuple[Blob, bool]:
    """The blob with this digest, and whether it is new. `size` is the announced length; no more than that is read.

    Raises `TooLarge` over the limit, `Refused` for a stream that ends early, `DigestMismatch` for other bytes.
    """
    limit = settings.LABAPEX.blob_limit_bytes
    if size > limit:
        raise TooLarge(f"the file has {size} bytes; at most {limit} are accepted")
    known = find(owner, digest)
    if known is not None and known.path.exists():
        return known, False
    folder: Path = settings.LABAPEX.private_folder("blobs", str(owner.pk), digest[:2])
    temporary = folder / f".{digest}.{secrets.token_hex(8)}"
    key = new_key()
    try:
        with _create(temporary) as file:
            sealed = seal_stream(_Exactly(stream, size), file, key)
            file.flush()
            os.fsync(file.fileno())
        if sealed.size != size:
            raise Refused(f"the upload ended after {sealed.size} of {size} bytes; send it again")
        if sealed.digest_plain != digest:
            raise DigestMismatch("the bytes do not have the digest they were announced with; send the file again")
        return _enter(
            owner, digest, temporary, folder / digest, key, sealed.size, sealed.sealed_digest, sealed.sealed_size
        )
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def open_into(blob: Blob, target: Path) -> None:
    """Write a blob's plaintext to a new file of mode 0600. Raises `Tampered` where the stored file was altered."""
    with open_sealed(blob) as sealed, _create(target) as plain:
        open_stream(sealed, plain, content_key(blob))


def open_sealed(blob: Blob) -> BinaryIO:
    """The sealed file, to read."""
    return blob.path.open("rb")


def content_key(blob: Blob) -> bytes:
    """The key that opens the sealed file."""
    return keys.unwrap(blob.wrapped_key, _purpose(blob.owner_id, blob.digest))


def _purpose(owner_id: int, digest: str) -> str:
    return f"blob:{owner_id}:{digest}"


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def _enter(
    owner: User, digest: str, temporary: Path, final: Path, key: bytes, size: int, sealed_digest: str, sealed_size: int
) -> tuple[Blob, bool]:
    """Row and file belong together by key: of two uploads at once the first row wins, and only its file is kept."""
    fields = {
        "size": size,
        "sealed_digest": sealed_digest,
        "sealed_size": sealed_size,
        "wrapped_key": keys.wrap(key, _purpose(owner.pk, digest)),
        "created_at": clock.now(),
    }
    try:
        with transaction.atomic():
            blob = Blob.objects.create(owner=owner, digest=digest, **fields)
            temporary.rename(final)
            fsync_folder(final.parent)
        return blob, True
    except IntegrityError:
        blob = Blob.objects.get(owner=owner, digest=digest)
    if not blob.path.exists():  # the row outlived its file: a restored database, a lost disk
        with transaction.atomic():
            blob = Blob.objects.select_for_update().get(pk=blob.pk)
            Blob.objects.filter(pk=blob.pk).update(**fields)
            temporary.rename(final)
            fsync_folder(final.parent)
            blob.refresh_from_db()
    return blob, False


class _Exactly:
    """At most `size` bytes of a stream."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(min(size, self._left)) if self._left else b""
        self._left -= len(data)
        return data
