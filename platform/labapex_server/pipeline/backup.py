"""The whole platform as three files, and back: `database`, `files.tar`, and apart from both `keys.tar`.

The database is taken first, as of one moment; then the files. Files are added before the rows that speak of them, so each
row's file is in the later copy, but for those that were deleted meanwhile because nothing needs them any more.

What happened after that moment is unknown to a platform that is restored. Hosts may have deleted, by its own word, what it now
asks for again. So all leases that lived then are excused: what they do not bring any more is nobody's lie.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from pydantic import Field

from labapex.errors import LabApexError
from labapex.protocol.canonical import Message, parse
from labapex_server.jobs.models import Blob
from labapex_server.lib import clock, keys
from labapex_server.lib.files import fsync_folder
from labapex_server.marketplace import services as marketplace
from labapex_server.pipeline.sweep import forget_claims
from labapex_server.verification import services as verification

MANIFEST, DATABASE, FILES, KEYS = "manifest.json", "database", "files.tar", "keys.tar"
_NOT_KEPT = {"keys", "work", "environments", "static", "uploads", "serve.lock"}  # apart, or made anew
_IN_THE_STORE = {"blobs", "leases", "wheels", "runners"}  # where an object store is set: it has its own copies
_MAX_MANIFEST = 1 << 20


class Unusable(LabApexError):
    """A backup cannot be made here, or be restored here. The message says why."""


class Contents(Message):
    """What stands in a backup's manifest."""

    format: Literal["labapex-backup-1"] = "labapex-backup-1"
    taken_at: float  # Unix time, as of which the database is
    database: Literal["sqlite", "postgresql"]
    object_store: str  # where clients' files are besides; empty: they are all in here
    migrations: dict[str, str]  # by app the latest that was applied
    sha256: dict[str, str] = Field(max_length=8)  # of the other files


def take(folder: Path) -> Contents:
    """Write a backup into a new folder, while the platform runs. Raises `Unusable`."""
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise Unusable(f"{folder}: {error.strerror}; name a folder that is not there yet") from None
    migrations, taken_at = _migrations(), clock.now().timestamp()
    dump = _dump_sqlite if connection.vendor == "sqlite" else _dump_postgresql
    dump(folder / DATABASE)
    home: Path = settings.LABAPEX.home
    store = settings.LABAPEX.object_store_url
    left_out = _NOT_KEPT | (_IN_THE_STORE if store else set())
    _pack(folder / FILES, home, [path for path in sorted(home.iterdir()) if path.name not in left_out])
    _pack(folder / KEYS, home, [home / "keys"])
    contents = Contents(
        taken_at=taken_at,
        database="sqlite" if connection.vendor == "sqlite" else "postgresql",
        object_store=store,
        migrations=migrations,
        sha256={name: _sha256(folder / name) for name in (DATABASE, FILES, KEYS)},
    )
    _write(folder / MANIFEST, contents.model_dump_json(indent=1).encode())
    fsync_folder(folder)
    return contents


def restore(folder: Path, keys_file: Path) -> Contents:
    """Put a backup in the place of a platform that is not there yet. Raises `Unusable`; nothing was changed then, unless the
    database's own program failed on its way."""
    contents = _checked(folder, keys_file)
    home: Path = settings.LABAPEX.home
    _check_empty(home, contents)
    load = _load_sqlite if contents.database == "sqlite" else _load_postgresql
    load(folder / DATABASE)
    for archive in (keys_file, folder / FILES):
        with tarfile.open(archive) as packed:
            packed.extractall(home, filter="data")
    for path in home.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    keys.forget()
    call_command("migrate", verbosity=0, interactive=False)
    _check_keys()
    marketplace.excuse_live()
    marketplace.forgive_silence()
    verification.forgive_silence()
    forget_claims()
    return contents


# -- databases ---------------------------------------------------------------------------------------------------------


def _dump_sqlite(target: Path) -> None:
    with closing(sqlite3.connect(_sqlite())) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    target.chmod(0o600)


def _load_sqlite(source: Path) -> None:
    connections.close_all()
    target = _sqlite()
    for left in ("-wal", "-shm"):  # of another database, they would be played into this one
        target.with_name(target.name + left).unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o600)


def _sqlite() -> Path:
    return Path(str(connection.settings_dict["NAME"]))


def _dump_postgresql(target: Path) -> None:
    _postgresql(["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={target}"])
    target.chmod(0o600)


def _load_postgresql(source: Path) -> None:
    name = _postgresql_settings()["PGDATABASE"]
    line = ["pg_restore", "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    _postgresql([*line, f"--dbname={name}", str(source)])


def _postgresql(line: list[str]) -> None:
    """One of PostgreSQL's own programs. The password goes by its environment: others can read a command line."""
    if shutil.which(line[0]) is None:
        raise Unusable(f"{line[0]} is missing; install PostgreSQL's client (Debian: postgresql-client)")
    done = subprocess.run(
        line, env={**os.environ, **_postgresql_settings()}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unusable(f"{line[0]} failed: {done.stderr.strip()[-2000:]}")


def _postgresql_settings() -> dict[str, str]:
    found = connection.settings_dict
    named = {"PGHOST": "HOST", "PGPORT": "PORT", "PGUSER": "USER", "PGPASSWORD": "PASSWORD", "PGDATABASE": "NAME"}
    return {variable: str(found[name]) for variable, name in named.items() if found.get(name)}


def _migrations() -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT app, MAX(name) FROM django_migrations GROUP BY app")
        return dict(cursor.fetchall())


# -- files -------------------------------------------------------------------------------------------------------------


def _pack(target: Path, home: Path, paths: list[Path]) -> None:
    with _create(target) as file, tarfile.open(fileobj=file, mode="w") as packed:
        for top in paths:
            for path in _below(top):
                try:
                    packed.add(path, path.relative_to(home), recursive=False)
                except FileNotFoundError:
                    continue  # it was deleted meanwhile, since nothing needs it
        file.flush()
        os.fsync(file.fileno())


def _below(top: Path) -> Iterator[Path]:
    """A file, or a folder with all that is complete in it."""
    if top.name.startswith((".", "platform.sqlite3")):
        return
    yield top
    if top.is_dir() and not top.is_symlink():
        for path in sorted(top.iterdir()):
            if path.name != "incoming":
                yield from _below(path)


def _create(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _write(path: Path, data: bytes) -> None:
    with _create(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- before anything is changed ----------------------------------------------------------------------------------------


def _checked(folder: Path, keys_file: Path) -> Contents:
    try:
        with (folder / MANIFEST).open("rb") as file:
            contents = parse(Contents, file.read(_MAX_MANIFEST + 1), limit=_MAX_MANIFEST)
        for name, sha256 in contents.sha256.items():
            path = keys_file if name == KEYS else folder / name
            if _sha256(path) != sha256:
                raise Unusable(f"{path} is not the file that belongs to this backup, or it was damaged")
    except OSError as error:
        raise Unusable(f"{error.filename}: {error.strerror}") from None
    vendor = "sqlite" if connection.vendor == "sqlite" else connection.vendor
    if contents.database != vendor:
        raise Unusable(
            f"the backup is of {contents.database} and LABAPEX_DATABASE_URL names {vendor}; set the same kind"
        )
    if contents.object_store != settings.LABAPEX.object_store_url:
        raise Unusable(
            f"clients' files are in {contents.object_store or 'the backup itself'};"
            " set LABAPEX_OBJECT_STORE_URL as it was, and to a copy of that bucket where the old platform still runs"
        )
    for app, latest in contents.migrations.items():
        known = _latest_known(app)
        if known is not None and known < latest:
            raise Unusable(f"the backup is of a newer release ({app} {latest}); check that one out first")
    return contents


def _latest_known(app: str) -> str | None:
    """The latest migration of an app of ours that this release has."""
    try:
        config = apps.get_app_config(app)
    except LookupError:
        return None
    if not config.name.startswith("labapex_server."):
        return None
    return max((path.stem for path in Path(config.path, "migrations").glob("[0-9]*.py")), default=None)


def _check_empty(home: Path, contents: Contents) -> None:
    there = {path.name for path in home.iterdir()} - {"static", "keys"}
    there |= {f"keys/{path.name}" for path in (home / "keys").iterdir()} - {
        "keys/django"
    }  # every command makes that one
    if there:
        raise Unusable(f"{home} is not empty ({sorted(there)[0]}); restore into an empty LABAPEX_HOME")
    if contents.database == "sqlite" and _sqlite().exists():
        raise Unusable(f"{_sqlite()} is there; restore where no database is")
    if contents.database == "postgresql" and (tables := connection.introspection.table_names()):
        raise Unusable(f"the database has tables already ({tables[0]}); restore into an empty one")


def _check_keys() -> None:
    """Database and keys belong together. Raises `Tampered`."""
    from labapex_server.jobs import blobs

    for blob in Blob.objects.order_by("-pk")[:10]:
        blobs.content_key(blob)
