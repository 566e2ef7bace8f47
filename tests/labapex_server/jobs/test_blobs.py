from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from labapex.errors import Tampered
from labapex.sealing import SEGMENT_BYTES
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs.models import Blob
from labapex_server.lib.errors import DigestMismatch, OffsetMismatch, Refused, TooLarge

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
    with pytest.raises(Refused, match="ended 1 bytes too early"):
        store(researcher, size=len(CONTENT) + 1)
    with pytest.raises(DigestMismatch):  # what is past the announced size is not read
        store(researcher, size=len(CONTENT) - 1)
    assert not Blob.objects.exists()
    assert not everything_stored(home)


class Broken(io.BytesIO):
    """A client that goes away when its bytes are sent."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            raise ConnectionError("gone")
        return data


LONG = bytes(range(251)) * 20_000  # 4.8 MiB, five segments
LONG_DIGEST = hashlib.sha256(LONG).hexdigest()


def broken_off(owner: User, sent: int) -> int:
    """Send so many bytes of LONG and go away; where it can go on."""
    with pytest.raises(ConnectionError):
        blobs.store(owner, LONG_DIGEST, Broken(LONG[:sent]), size=len(LONG))
    return blobs.begun(owner, LONG_DIGEST)


@pytest.mark.parametrize("sent", [0, 1, SEGMENT_BYTES, 2 * SEGMENT_BYTES + 17, 4 * SEGMENT_BYTES, len(LONG) - 1])
def test_an_upload_that_broke_off_goes_on_and_comes_back_whole(
    researcher: User, home: Path, tmp_path: Path, sent: int
) -> None:
    offset = broken_off(researcher, sent)
    assert sent - 2 * SEGMENT_BYTES <= offset <= sent  # what is sealed lags one segment behind
    blob, new = blobs.store(researcher, LONG_DIGEST, io.BytesIO(LONG[offset:]), size=len(LONG), offset=offset)
    assert new
    blobs.open_into(blob, tmp_path / "plain")
    assert (tmp_path / "plain").read_bytes() == LONG
    assert hashlib.sha256(blob.path.read_bytes()).hexdigest() == blob.sealed_digest
    assert not [path for path in (home / "uploads").rglob("*") if path.is_file()]


def test_what_is_kept_of_an_upload_is_sealed(researcher: User, home: Path) -> None:
    assert broken_off(researcher, 3 * SEGMENT_BYTES)
    (path,) = [path for path in (home / "uploads").rglob("*") if path.is_file()]
    assert LONG[:100] not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_upload_goes_on_only_where_it_stopped_and_for_its_owner(researcher: User, other_researcher: User) -> None:
    offset = broken_off(researcher, 3 * SEGMENT_BYTES)
    for owner, at, here in (
        (researcher, offset - SEGMENT_BYTES, offset),
        (researcher, 5, offset),
        (researcher, len(LONG), offset),
        (other_researcher, offset, 0),
    ):
        with pytest.raises(OffsetMismatch) as caught:
            blobs.store(owner, LONG_DIGEST, io.BytesIO(LONG[at:]), size=len(LONG), offset=at)
        assert caught.value.offset == here


def test_another_end_than_announced_spoils_the_whole_upload(researcher: User) -> None:
    offset = broken_off(researcher, 3 * SEGMENT_BYTES)
    other = bytes(len(LONG) - offset)
    with pytest.raises(DigestMismatch):
        blobs.store(researcher, LONG_DIGEST, io.BytesIO(other), size=len(LONG), offset=offset)
    assert blobs.begun(researcher, LONG_DIGEST) == 0
    assert not Blob.objects.exists()


def test_a_torn_end_is_cut_off_and_a_damaged_beginning_starts_anew(researcher: User, home: Path) -> None:
    offset = broken_off(researcher, 3 * SEGMENT_BYTES)
    (path,) = [path for path in (home / "uploads").rglob("*") if path.is_file()]
    with path.open("ab") as file:
        file.write(b"half a segment")
    assert blobs.begun(researcher, LONG_DIGEST) == offset
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    with pytest.raises(OffsetMismatch) as caught:
        blobs.store(researcher, LONG_DIGEST, io.BytesIO(LONG[offset:]), size=len(LONG), offset=offset)
    assert caught.value.offset == 0
    assert blobs.store(researcher, LONG_DIGEST, io.BytesIO(LONG), size=len(LONG))[1]


def test_an_upload_that_is_under_way_is_nobody_elses_to_go_on_with(researcher: User) -> None:
    offset = broken_off(researcher, 3 * SEGMENT_BYTES)

    class Meanwhile(io.BytesIO):
        """A second request for the same upload arrives while the first is read."""

        def read(self, size: int | None = -1, /) -> bytes:
            with pytest.raises(OffsetMismatch):
                blobs.store(researcher, LONG_DIGEST, io.BytesIO(LONG[offset:]), size=len(LONG), offset=offset)
            return super().read(size)

    blob, _ = blobs.store(researcher, LONG_DIGEST, Meanwhile(LONG[offset:]), size=len(LONG), offset=offset)
    assert hashlib.sha256(blob.path.read_bytes()).hexdigest() == blob.sealed_digest


def test_uploads_that_nobody_went_on_with_for_a_day_are_forgotten(researcher: User, home: Path) -> None:
    broken_off(researcher, 3 * SEGMENT_BYTES)
    (path,) = [path for path in (home / "uploads").rglob("*") if path.is_file()]
    os.utime(path, (0, 0))
    store(researcher)
    assert not path.exists()


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
