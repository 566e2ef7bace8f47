"""The worker's memory: leases, and the frames of their logs until the platform has them.

A frame is committed together with the log's new head before the executable is told that it may forget it, and deleted
only when the platform acknowledges it with the frame's own hash. In between it never changes. So a kill -9 or a power
cut at any moment loses nothing and doubles nothing. SQLite in WAL mode with `synchronous=FULL` gives the durability.

A disk without room takes no more frames before it takes nothing more at all: the last of it is for what is decided.

The frames come from where the client's code runs: size, chain and hash are checked before anything is kept.
"""

from __future__ import annotations

import hmac
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from pydantic import TypeAdapter

from labapex.errors import LabApexError, MalformedInput, Tampered, UsageError
from labapex.protocol.canonical import Message
from labapex.protocol.frames import MAX_MESSAGE, Data, Fin, Grant, KeyRelease, KeyRequest, frame_hash, genesis
from labapex.protocol.packing import pack, unpack
from labapex_worker.phases import Phase

SCHEMA_VERSION = 1
LEFT_BYTES = 64 << 20  # of the disk, that frames leave free
_SCHEMA = """
CREATE TABLE leases (
    lease BLOB PRIMARY KEY, job BLOB NOT NULL, name TEXT NOT NULL, token TEXT NOT NULL, size INTEGER NOT NULL,
    threads INTEGER NOT NULL, phase TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    key_request BLOB, key_release BLOB, peer INTEGER, fin BLOB,
    base INTEGER NOT NULL DEFAULT 0, base_head BLOB NOT NULL,   -- the platform holds frames 0 .. base-1
    seq INTEGER NOT NULL DEFAULT 0, head BLOB NOT NULL,         -- frames 0 .. seq-1 came from the executable
    next INTEGER NOT NULL DEFAULT 0                             -- with that many loss records
) STRICT;
CREATE TABLE frames (
    lease BLOB NOT NULL REFERENCES leases ON DELETE CASCADE, seq INTEGER NOT NULL, first INTEGER NOT NULL,
    n INTEGER NOT NULL, prev BLOB NOT NULL, payload BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (lease, seq)
) STRICT;
CREATE TRIGGER frames_never_change BEFORE UPDATE ON frames
    BEGIN SELECT RAISE(ABORT, 'a spooled frame never changes'); END;
"""


class Taken(Enum):
    """What became of a frame from the executable."""

    APPENDED = "appended"
    KNOWN = "known"  # held already, or once held
    GAP = "gap"
    FULL = "full"  # the quota is used up, or the disk: neither kept nor acknowledged


@dataclass(frozen=True)
class Lease:
    """One row of the table of leases. `fin` is the log's end where it is known."""

    grant: Grant
    phase: Phase
    reason: str
    key_request: KeyRequest | None
    key_release: KeyRelease | None
    peer: int | None
    fin: Fin | None
    base: int
    base_head: bytes
    seq: int
    head: bytes
    next: int

    @property
    def id(self) -> UUID:
        return self.grant.lease


class Forked(MalformedInput):
    """The platform claims to hold another log than the one that was spooled here."""


class DiskFull(LabApexError):
    """What has to be remembered cannot be written: nothing was changed, and the program knows more than its disk."""


class Spool:
    """One SQLite file; `quota` is in bytes of payload over all leases. Not for use by several threads."""

    def __init__(self, path: Path, *, quota: int, read_only: bool = False) -> None:
        self._quota, self._folder = quota, path.parent
        if read_only:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        else:
            with self._writing():
                path.touch(mode=0o600)
                self._db = sqlite3.connect(path, isolation_level=None)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                if self._version() == 0:
                    self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        if self._version() != SCHEMA_VERSION:
            raise UsageError(f"{path} was written by another version of this program; upgrade the older of the two")
        self._bytes = int(self._db.execute("SELECT coalesce(sum(length(payload)), 0) FROM frames").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    @property
    def spooled_bytes(self) -> int:
        return self._bytes

    def room(self, size: int) -> bool:
        """Whether so many bytes more of frames would be taken."""
        return self._bytes + size <= self._quota and shutil.disk_usage(self._folder).free >= LEFT_BYTES

    # -- leases --------------------------------------------------------------------------------------------------------

    def add(self, grant: Grant) -> None:
        """Remember a new lease; one that is known already only gets its new token."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO leases (lease, job, name, token, size, threads, phase, base_head, head)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (lease) DO UPDATE SET token = excluded.token",
                (
                    grant.lease.bytes, grant.job.bytes, grant.name, grant.token, grant.size, grant.threads,
                    Phase.GRANTED, genesis(grant.lease), genesis(grant.lease),
                ),
            )  # fmt: skip

    def leases(self) -> list[Lease]:
        """All leases in the order in which they came."""
        return [_lease(row) for row in self._db.execute(f"{_SELECT} ORDER BY rowid")]

    def lease(self, lease: UUID) -> Lease | None:
        row = self._db.execute(f"{_SELECT} WHERE lease = ?", (lease.bytes,)).fetchone()
        return None if row is None else _lease(row)

    def move(self, lease: UUID, phase: Phase, reason: str = "") -> None:
        self._change(lease, "phase = ?, reason = ?", (phase, reason))

    def keep_request(self, request: KeyRequest, peer: int) -> None:
        """Remember the executable's keys, and which process sent them: no other may speak for the lease afterwards."""
        self._change(request.lease, "key_request = ?, peer = ?", (pack(request), peer))

    def keep_release(self, release: KeyRelease) -> None:
        self._change(release.lease, "key_release = ?", (pack(release),))

    def forget(self, lease: UUID) -> None:
        """Delete a lease with all its frames."""
        with self._transaction():
            self._db.execute("DELETE FROM leases WHERE lease = ?", (lease.bytes,))
        self._bytes = int(self._db.execute("SELECT coalesce(sum(length(payload)), 0) FROM frames").fetchone()[0])

    # -- the log -------------------------------------------------------------------------------------------------------

    def append(self, frame: Data) -> Taken:
        """Commit a frame from the executable. Raises `Tampered` where it does not belong to the chain."""
        held = self._held(frame.lease)
        if frame.seq > held.seq:
            return Taken.GAP
        hashed = frame_hash(
            lease=frame.lease, seq=frame.seq, first=frame.first, n=frame.n, prev=frame.prev, payload=frame.payload
        )
        if not hmac.compare_digest(hashed, frame.hash):
            raise Tampered(f"frame {frame.seq} does not have the hash that it says")
        if frame.seq < held.seq:
            return Taken.KNOWN
        if held.fin is not None:
            raise Tampered(f"frame {frame.seq} comes after the end of the log")
        # The first frame says where the log begins: a run may come from another host. The platform knows whether it does.
        if not hmac.compare_digest(frame.prev, held.head) or (held.seq and frame.first != held.next):
            raise Tampered(f"frame {frame.seq} does not continue the log")
        if not self.room(len(frame.payload)):
            return Taken.FULL
        with self._transaction():
            self._db.execute(
                "INSERT INTO frames (lease, seq, first, n, prev, payload, hash) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (frame.lease.bytes, frame.seq, frame.first, frame.n, frame.prev, frame.payload, frame.hash),
            )
            changed = self._db.execute(
                "UPDATE leases SET seq = ?, head = ?, next = ? WHERE lease = ? AND seq = ? AND head = ?",
                (frame.seq + 1, frame.hash, frame.first + frame.n, frame.lease.bytes, frame.seq, frame.prev),
            ).rowcount
            if changed != 1:
                raise RuntimeError(f"{changed} heads changed for one frame: two programs write to this spool")
        self._bytes += len(frame.payload)
        return Taken.APPENDED

    def finish(self, fin: Fin) -> Taken:
        """Remember the end of the log. Raises `Tampered` where it is not the end of the log that is held."""
        held = self._held(fin.lease)
        if fin.seq > held.seq:
            return Taken.GAP
        if (fin.seq, fin.total) != (held.seq, held.next) or not hmac.compare_digest(fin.head, held.head):
            raise Tampered("the end of the log does not fit the log")
        if held.fin is not None:
            return Taken.KNOWN
        self._change(fin.lease, "fin = ?", (pack(fin),))
        return Taken.APPENDED

    def frames(self, lease: UUID, first: int, stop: int) -> Iterator[Data]:
        """The frames first .. stop-1, as they came."""
        for row in self._db.execute(
            "SELECT seq, first, n, prev, payload, hash FROM frames"
            " WHERE lease = ? AND seq >= ? AND seq < ? ORDER BY seq",
            (lease.bytes, first, stop),
        ):
            seq, start, n, prev, payload, hashed = row
            yield Data(lease=lease, seq=seq, first=start, n=n, prev=prev, payload=payload, hash=hashed)

    def acknowledge(self, lease: UUID, count: int, head: bytes) -> int:
        """The platform says that it holds `count` frames, the last with hash `head`: delete those.

        Returns how many it is known to hold; an older claim changes nothing. Raises `Forked` where the hash is not the
        spooled one's."""
        held = self._held(lease)
        if count < held.base:
            return held.base
        if count > held.seq:
            raise Forked(f"the platform claims {count} frames; {held.seq} were made")
        if count == held.base:
            own = held.base_head
        else:
            found = self._db.execute(
                "SELECT hash FROM frames WHERE lease = ? AND seq = ?", (lease.bytes, count - 1)
            ).fetchone()
            own = bytes(found[0])
        if not hmac.compare_digest(own, head):
            raise Forked(f"the platform's log has another frame {count - 1} than was made here")
        if count == held.base:
            return count
        freed = "SELECT coalesce(sum(length(payload)), 0) FROM frames WHERE lease = ? AND seq < ?"
        with self._transaction():
            size = int(self._db.execute(freed, (lease.bytes, count)).fetchone()[0])
            self._db.execute("DELETE FROM frames WHERE lease = ? AND seq < ?", (lease.bytes, count))
            self._db.execute("UPDATE leases SET base = ?, base_head = ? WHERE lease = ?", (count, head, lease.bytes))
        self._bytes -= size
        return count

    # ------------------------------------------------------------------------------------------------------------------

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _held(self, lease: UUID) -> Lease:
        if (held := self.lease(lease)) is None:
            raise MalformedInput(f"no lease {lease} is held here")
        return held

    def _change(self, lease: UUID, what: str, values: tuple[object, ...]) -> None:
        with self._transaction():
            self._db.execute(f"UPDATE leases SET {what} WHERE lease = ?", (*values, lease.bytes))  # noqa: S608

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._writing():
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:  # SQLite has undone it already after some errors
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises `DiskFull` where that is why something cannot be written, which SQLite tells in several ways."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            free = shutil.disk_usage(self._folder).free
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or free < LEFT_BYTES:
                raise DiskFull(f"{self._folder} has no room: {free >> 20} MiB are free ({error})") from error
            raise


_SELECT = (
    "SELECT lease, job, name, token, size, threads, phase, reason, key_request, key_release, peer, fin,"
    " base, base_head, seq, head, next FROM leases"
)


M = TypeVar("M", bound=Message)


def _lease(row: tuple[Any, ...]) -> Lease:
    lease, job, name, token, size, threads, phase, reason, request, release, peer, fin, *log = row
    return Lease(
        Grant(lease=UUID(bytes=lease), job=UUID(bytes=job), name=name, token=token, size=size, threads=threads),
        Phase(phase),
        reason,
        _kept(KeyRequest, request),
        _kept(KeyRelease, release),
        peer,
        _kept(Fin, fin),
        *log,
    )


def _kept(kind: type[M], data: bytes | None) -> M | None:
    return None if data is None else unpack(TypeAdapter(kind), data, limit=MAX_MESSAGE)
