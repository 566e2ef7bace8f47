from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest

from labapex.errors import Tampered
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs.models import Blob
from labapex_server.lib.errors import DigestMismatch, Refused, TooLarge

pytestmark = pytest.mark.django_db
CONTENT = b"a script that nobody else may read " * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def store(owner: User, content: bytes = CONTENT, digest: str = DIGEST, size: int | None = None) -> tuple[Blob, bool]:
    return blobs.store(owner, digest, io.BytesIO(content), size=len(content) if size is None else size)


def everything_stored(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (home / "blobs").rglob("*") if path.is_file())


def test_what_was_stored_comes_back_and_lies_sealed_meanwhile(researcher: User, home: Path, tmp_path: Path) -> None:
    blob, new = store(researcher)
    assert new
    assert CONTENT[:30] not in everything_stored(home)
    blobs.open_into(blob, tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() == CONTENT
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o600
    assert hashlib.sha256(blob.path.read_bytes()).hexdigest() == blob.sealed_digest
    assert blob.path.stat().st_size == blob.sealed_size


def test_the_same_bytes_are_kept_once_per_owner(researcher: User, other_researcher: User) -> None:
    first, _ = store(researcher)
    assert store(researcher) == (first, False)
    other, new = store(other_researcher)
    assert new
    assert other.path != first.path
    assert blobs.find(other_researcher, DIGEST) == other


def test_other_bytes_than_announced_leave_nothing(researcher: User, home: Path) -> None:
    with pytest.raises(DigestMismatch):
        store(researcher, CONTENT[::-1])
    with pytest.raises(Refused, match="ended after"):
        store(researcher, size=len(CONTENT) + 1)
    with pytest.raises(DigestMismatch):  # what is past the announced size is not read
        store(researcher, size=len(CONTENT) - 1)
    assert not Blob.objects.exists()
    assert not everything_stored(home)


def test_a_file_over_the_limit_is_refused_before_a_byte_is_read(researcher: User, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"blob_limit_bytes": 10})

    class Unreadable:
        def read(self, size: int, /) -> bytes:
            raise AssertionError("it was read")

    with pytest.raises(TooLarge, match="at most 10"):
        blobs.store(researcher, DIGEST, Unreadable(), size=11)


def test_a_stored_file_that_was_altered_does_not_open(researcher: User, tmp_path: Path) -> None:
    blob, _ = store(researcher)
    data = bytearray(blob.path.read_bytes())
    data[-1] ^= 1
    blob.path.write_bytes(bytes(data))
    with pytest.raises(Tampered):
        blobs.open_into(blob, tmp_path / "plain")


def test_a_key_does_not_open_another_owners_row(researcher: User, other_researcher: User) -> None:
    mine, _ = store(researcher)
    theirs, _ = store(other_researcher)
    theirs.wrapped_key = mine.wrapped_key
    with pytest.raises(Tampered):
        blobs.content_key(theirs)


def test_a_row_whose_file_was_lost_is_mended_by_the_next_upload(researcher: User, tmp_path: Path) -> None:
    blob, _ = store(researcher)
    blob.path.unlink()
    mended, _ = store(researcher)
    blobs.open_into(mended, tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() == CONTENT
