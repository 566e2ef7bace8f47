"""Files that all machines of a platform share: uploads, opened states, weights, wheels, runners. Each has one place below the
home folder, and its name is that place.

Without an object store that is all there is: the home is one file system. With one (`LABAPEX_OBJECT_STORE_URL`), the store
has every such file before anybody is told of it, and the home folder is what this machine has copies in.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from django.conf import settings

from labapex_server.lib.config import Config
from labapex_server.lib.errors import Refused
from labapex_server.lib.files import fsync_folder

log = logging.getLogger(__name__)

_TRIMMED = ("blobs", "leases", "wheels")  # the few runners stay

_LOOK_SECONDS = 60.0
_looked_at = float("-inf")
_FRESH_SECONDS = 3600.0  # a copy that was asked for so lately stays: someone may be about to open it


class StoreSilent(Refused):
    """The object store does not answer, or refuses us: nothing is wrong with the file, and later it may be had."""

    status = 503
    code = "store-silent"

    def __init__(self, why: str) -> None:
        log.error("the object store %s", why)
        super().__init__("the platform's file store does not answer; try again in a minute")


class Remote(Protocol):
    """Where files are besides the disk. Each method raises `StoreSilent`."""

    def prepare(self) -> None: ...
    def upload(self, path: Path, name: str) -> None: ...
    def download(self, name: str, path: Path) -> None: ...  # FileNotFoundError where there is none
    def size(self, name: str) -> int | None: ...
    def delete(self, name: str) -> None: ...


def prepare() -> None:
    """Make the bucket, where there is to be one and it is missing. Raises `StoreSilent`."""
    if (remote := _remote()) is not None:
        remote.prepare()


def keep(made: Path, final: Path) -> None:
    """Move a complete file of this disk to its place (0600), durably, for all machines; it replaces one that is there.

    Raises `StoreSilent`; then nothing is at the place that was not before."""
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with made.open("rb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.fsync(file.fileno())
    if (remote := _remote()) is not None:
        remote.upload(made, _name(final))
    made.rename(final)
    fsync_folder(final.parent)
    _make_room()


def fetch(place: Path) -> Path:
    """The file, on this disk now. Raises `FileNotFoundError` where nobody has it, and `StoreSilent`."""
    remote = _remote()
    if place.exists():
        if remote is not None:
            os.utime(place)  # the copies used longest ago make room first
        return place
    if remote is None:
        raise FileNotFoundError(place)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    try:
        draft.touch(mode=0o600)
        remote.download(_name(place), draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())  # a copy that a power cut emptied would be taken for the file
        draft.rename(place)
        _make_room()
    finally:
        draft.unlink(missing_ok=True)
    return place


def size(place: Path) -> int | None:
    """Its bytes; None where nobody has it. Raises `StoreSilent`."""
    with suppress(FileNotFoundError):
        return place.stat().st_size
    remote = _remote()
    return None if remote is None else remote.size(_name(place))


def delete(place: Path) -> None:
    """Forget a file, if there is one. Copies of other machines go when they make room. Raises `StoreSilent`."""
    if (remote := _remote()) is not None:
        remote.delete(_name(place))
    place.unlink(missing_ok=True)


def _make_room() -> None:
    """Now and then: a machine's copies grow here and nowhere else."""
    global _looked_at
    if time.monotonic() - _looked_at > _LOOK_SECONDS:
        _looked_at = time.monotonic()
        trim()


def trim() -> int:
    """Delete this machine's copies beyond `object_cache_bytes`, those used longest ago first. Returns the bytes freed.

    Without an object store they are no copies, and none is touched."""
    if _remote() is None:
        return 0
    found = sorted(_copies())
    excess, freed = sum(size for _, size, _ in found) - settings.LABAPEX.object_cache_bytes, 0
    for used_at, size, path in found:
        if freed >= excess or time.time() - used_at < _FRESH_SECONDS:
            break
        path.unlink(missing_ok=True)
        freed += size
    return freed


def _copies() -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes, path) of the files here, but for those that are being written."""
    home: Path = settings.LABAPEX.home
    for folder in _TRIMMED:
        for path in (home / folder).rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith(".") and path.parent.name != "incoming":
                    found = path.stat()
                    yield found.st_mtime, found.st_size, path


def _name(place: Path) -> str:
    home: Path = settings.LABAPEX.home
    return place.relative_to(home).as_posix()


def _remote() -> Remote | None:
    config: Config = settings.LABAPEX
    if not config.object_store_url:
        return None
    return _bucket(
        config.object_store_url,
        config.object_store_endpoint,
        config.object_store_region,
        config.object_store_key.get_secret_value(),
        config.object_store_secret.get_secret_value(),
    )


@lru_cache(maxsize=4)
def _bucket(url: str, endpoint: str, region: str, key: str, secret: str) -> Bucket:
    return Bucket(url, endpoint=endpoint, region=region, key=key, secret=secret)


class Bucket:
    """A bucket of a store that speaks S3. Its client is safe to share among threads."""

    def __init__(self, url: str, *, endpoint: str, region: str, key: str, secret: str) -> None:
        """`url` is s3://bucket/prefix, as `Config` saw to; without `key`, boto3 looks for credentials in its own places."""
        parts = urlsplit(url)
        self._bucket, prefix = parts.netloc, parts.path.strip("/")
        self._prefix, self._region = f"{prefix}/" if prefix else "", region
        boto3, options = import_module("boto3"), import_module("botocore.config")
        self._errors = import_module("botocore.exceptions")
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=region or None,
            aws_access_key_id=key or None,
            aws_secret_access_key=secret or None,
            config=options.Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"mode": "standard", "max_attempts": 4},
                s3={"addressing_style": "path" if endpoint else "auto"},
                # Every file that is kept here is checked by a digest or a tag of our own when it is used; not every
                # store knows the checksums that boto3 would add.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def prepare(self) -> None:
        try:
            with self._said(self._bucket):
                self._client.head_bucket(Bucket=self._bucket)
        except FileNotFoundError:
            here = {} if self._region in ("", "us-east-1") else {"LocationConstraint": self._region}
            with self._said(self._bucket):
                self._client.create_bucket(Bucket=self._bucket, **({"CreateBucketConfiguration": here} if here else {}))

    def upload(self, path: Path, name: str) -> None:
        with self._said(name):
            self._client.upload_file(str(path), self._bucket, self._prefix + name)  # in parts, where it is large

    def download(self, name: str, path: Path) -> None:
        with self._said(name), path.open("wb") as file:  # given a path, boto3 would put another file there
            self._client.download_fileobj(self._bucket, self._prefix + name, file)

    def size(self, name: str) -> int | None:
        try:
            with self._said(name):
                found: int = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)["ContentLength"]
        except FileNotFoundError:
            return None
        return found

    def delete(self, name: str) -> None:
        with self._said(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    @contextmanager
    def _said(self, name: str) -> Iterator[None]:
        """boto3's errors as ours. A bucket that is not there is no missing file."""
        try:
            yield
        except self._errors.ClientError as error:
            answer = error.response.get("Error", {})
            if answer.get("Code") in ("404", "NoSuchKey"):
                raise FileNotFoundError(name) from None
            raise StoreSilent(f"refuses: {answer.get('Code')} {answer.get('Message', '')}") from error
        except (self._errors.BotoCoreError, import_module("boto3.exceptions").Boto3Error) as error:
            raise StoreSilent(f"does not answer: {error}") from error
