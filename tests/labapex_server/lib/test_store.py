"""The object store is played by moto's server: a program of its own that speaks S3 over HTTP."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from labapex.sealing import open_stream
from labapex_server.accounts.models import User
from labapex_server.jobs import blobs
from labapex_server.jobs.models import Blob
from labapex_server.lib import store
from labapex_server.lib.config import Config
from labapex_server.verification import erasing

BUCKET = "labapex-files"
CONTENT = os.urandom(20 << 20)  # several parts of an upload
OLD = 7200.0  # seconds


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> Any:
    """The bucket as its owner sees it, empty at the beginning."""
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    client = boto3.session.Session().client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket=BUCKET)
    return client


def machine(settings: Any, home: Path, endpoint: str, **others: Any) -> None:
    """From now on this process is a machine of the platform with a disk of its own."""
    settings.LABAPEX = Config(
        home=home,
        object_store_url=f"s3://{BUCKET}/platform",
        object_store_endpoint=endpoint,
        object_store_region="us-east-1",
        object_store_key="key",
        object_store_secret="secret",
        **others,
    )


def put(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    made = place.with_name(".made")
    made.write_bytes(content)
    store.keep(made, place)


def names(bucket: Any) -> list[str]:
    return [each["Key"] for each in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def test_a_file_that_one_machine_keeps_is_had_by_another(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path
) -> None:
    machine(settings, tmp_path / "a", endpoint)
    put(tmp_path / "a" / "leases" / "one" / "weights.safetensors", CONTENT)
    assert names(bucket) == ["platform/leases/one/weights.safetensors"]

    machine(settings, tmp_path / "b", endpoint)
    place = tmp_path / "b" / "leases" / "one" / "weights.safetensors"
    assert store.size(place) == len(CONTENT)
    assert not place.exists(), "a size is told without a copy"
    assert store.fetch(place).read_bytes() == CONTENT
    assert place.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in place.parent.iterdir()] == ["weights.safetensors"]


def test_a_bucket_is_made_where_it_is_missing_and_left_alone_where_it_is_there(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path
) -> None:
    machine(settings, tmp_path, endpoint)
    put(tmp_path / "blobs" / "1", b"sealed")
    store.prepare()
    assert names(bucket) == ["platform/blobs/1"]
    bucket.delete_object(Bucket=BUCKET, Key="platform/blobs/1")
    bucket.delete_bucket(Bucket=BUCKET)
    store.prepare()
    put(tmp_path / "blobs" / "1", b"sealed")
    assert names(bucket) == ["platform/blobs/1"]


def test_what_nobody_has_is_missing_and_leaves_nothing_behind(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path
) -> None:
    machine(settings, tmp_path, endpoint)
    place = tmp_path / "wheels" / "ab" / "abcd"
    assert store.size(place) is None
    with pytest.raises(FileNotFoundError):
        store.fetch(place)
    store.delete(place)
    assert not list(place.parent.iterdir())


def test_a_deleted_file_is_gone_for_everyone_who_has_no_copy(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path
) -> None:
    machine(settings, tmp_path / "a", endpoint)
    put(tmp_path / "a" / "blobs" / "1", b"sealed")
    store.delete(tmp_path / "a" / "blobs" / "1")
    assert names(bucket) == []
    machine(settings, tmp_path / "b", endpoint)
    assert store.size(tmp_path / "b" / "blobs" / "1") is None


def test_copies_make_room_by_their_last_use_and_come_back_when_they_are_asked_for(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path
) -> None:
    machine(settings, tmp_path, endpoint, object_cache_bytes=250)
    places = [tmp_path / "blobs" / str(number) for number in range(5)]
    for number, place in enumerate(places):
        put(place, bytes([number]) * 100)
        os.utime(place, (time.time() - OLD + number,) * 2)
    store.fetch(places[0])  # used now
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "wrapping").write_bytes(b"k" * 1000)
    assert store.trim() == 300
    assert [place.exists() for place in places] == [True, False, False, False, True]
    assert (tmp_path / "keys" / "wrapping").exists(), "what the store does not have is no copy"
    assert store.fetch(places[1]).read_bytes() == b"\1" * 100
    assert store.trim() == 100, "only what nobody used lately goes"


def test_without_an_object_store_nothing_is_a_copy_and_nothing_makes_room(home: Path, settings: Any) -> None:
    settings.LABAPEX = settings.LABAPEX.model_copy(update={"object_cache_bytes": 0})
    place = home / "blobs" / "1"
    put(place, b"all there is")
    os.utime(place, (time.time() - OLD,) * 2)
    assert store.trim() == 0
    assert store.fetch(place).read_bytes() == b"all there is"


@pytest.mark.parametrize("there", [False, True], ids=["no server", "no bucket"])
def test_a_store_that_does_not_answer_is_no_missing_file_and_keeps_what_was_here(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path, there: bool
) -> None:
    place = tmp_path / "leases" / "one" / "chunks.bin"
    machine(settings, tmp_path, endpoint)
    put(place, b"first")
    if there:
        bucket.delete_object(Bucket=BUCKET, Key="platform/leases/one/chunks.bin")
        bucket.delete_bucket(Bucket=BUCKET)
    else:
        machine(settings, tmp_path, "http://127.0.0.1:1")
    with pytest.raises(store.StoreSilent, match="try again"):
        put(place, b"second")
    assert place.read_bytes() == b"first"
    with pytest.raises(store.StoreSilent):
        store.fetch(place.with_name("other"))


def test_an_upload_to_one_machine_is_opened_by_another(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path, researcher: User
) -> None:
    """Keys and database are shared; the disks are not."""
    machine(settings, tmp_path / "a", endpoint)
    digest = hashlib.sha256(CONTENT).hexdigest()
    blobs.store(researcher, digest, io.BytesIO(CONTENT), size=len(CONTENT))
    (tmp_path / "b").mkdir(mode=0o700)
    (tmp_path / "a" / "keys").rename(tmp_path / "b" / "keys")

    machine(settings, tmp_path / "b", endpoint)
    blob = Blob.objects.get(digest=digest)
    assert not blob.path.exists()
    plain = io.BytesIO()
    with blobs.open_sealed(blob) as sealed:
        open_stream(sealed, plain, blobs.content_key(blob))
    assert plain.getvalue() == CONTENT
    again, new = blobs.store(researcher, digest, io.BytesIO(CONTENT), size=len(CONTENT))
    assert (again.pk, new) == (blob.pk, False)


def test_a_secret_may_stand_in_a_file_instead_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "labapex_object_store_secret").write_text("of a file\n")
    made = Config(_secrets_dir=str(tmp_path))
    assert made.object_store_secret.get_secret_value().strip() == "of a file"
    assert "of a file" not in repr(made)


@pytest.mark.django_db
def test_what_no_job_needs_any_more_is_deleted_from_the_store_and_a_silent_store_is_asked_again(
    settings: Any, bucket: Any, endpoint: str, tmp_path: Path, researcher: User
) -> None:
    machine(settings, tmp_path / "one", endpoint)
    digest = hashlib.sha256(b"unused").hexdigest()
    blobs.store(researcher, digest, io.BytesIO(b"unused"), size=6)
    assert len(names(bucket)) == 1
    with configured(settings, object_store_url=f"s3://{BUCKET}-elsewhere/platform"), pytest.raises(store.StoreSilent):
        erasing.forget_files(researcher)
    assert Blob.objects.count() == 1
    erasing.forget_files(researcher)
    assert Blob.objects.count() == 0
    assert names(bucket) == []


@contextmanager
def configured(settings: Any, **update: Any) -> Iterator[None]:
    before = settings.LABAPEX
    settings.LABAPEX = before.model_copy(update=update)
    yield
    settings.LABAPEX = before
