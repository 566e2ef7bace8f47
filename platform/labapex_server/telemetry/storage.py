"""The two statements that each group of frames costs, whatever the number of its leases.

Everything else speaks to the database through Django's models. Here that would be most of the work: to build a query costs
more than to open, check and hash a frame, and a group has one for each lease.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from psycopg.types.json import Jsonb

from labapex.protocol.states import LeaseState
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry.models import Frame, Log


class Move(NamedTuple):
    """A log as it was when it was decided about, and as it is to become."""

    lease: UUID
    worker: UUID
    seq: int
    head: bytes
    new_seq: int
    new_next: int
    new_head: bytes


_ADVANCE = f"""
    UPDATE {Log._meta.db_table} AS log SET seq = new.column5, next = new.column6, head = new.column7
    FROM (VALUES {{rows}}) AS new, {Lease._meta.db_table} AS lease
    WHERE log.lease_id = new.column1 AND lease.id = new.column1
    AND lease.worker_id = new.column2 AND lease.state = '{LeaseState.RUNNING.value}'
    AND log.seq = new.column3 AND log.head = new.column4 AND NOT log.finished
    RETURNING lease_id
"""  # noqa: S608 - names of tables and of a state, all our own


def advance(moves: Sequence[Move]) -> frozenset[UUID]:
    """The compare-and-set: move those logs on that are as the decision saw them, and whose lease still runs on its worker.

    Returns the leases of these. The others have not changed."""
    if not moves:
        return frozenset()
    width = f"({', '.join(['%s'] * len(Move._fields))})"
    stored = _stored()
    values = [each for move in moves for each in (stored(move.lease), stored(move.worker), *move[2:])]
    with connection.cursor() as cursor:
        cursor.execute(_ADVANCE.format(rows=", ".join([width] * len(moves))), values)
        return frozenset(each if isinstance(each, UUID) else UUID(each) for (each,) in cursor.fetchall())


class Row(NamedTuple):
    """One frame, as the columns of its table."""

    log_id: UUID
    seq: int
    first: int
    n: int
    prev: bytes
    hash: bytes
    payload: bytes
    losses: bytes
    times: bytes
    extras: dict[str, Any]
    received_at: float


_TYPES = ["uuid", "int8", "int8", "int4", *["bytea"] * 5, "jsonb", "float8"]
_INTO = f"{Frame._meta.db_table} ({', '.join(connection.ops.quote_name(name) for name in Row._fields)})"
_INSERT = f"INSERT INTO {_INTO} VALUES ({', '.join(['%s'] * len(Row._fields))})"  # noqa: S608 - names of columns


def insert(rows: Collection[Row]) -> None:
    """Add these frames: by COPY where the database is PostgreSQL."""
    if not rows:
        return
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {_INTO} FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(_TYPES)
                for row in rows:
                    copy.write_row([*row[:-2], Jsonb(row.extras), row.received_at])
        else:
            stored = _stored()
            cursor.executemany(
                _INSERT,
                [(stored(row.log_id), *row[1:-2], json.dumps(row.extras), row.received_at) for row in rows],
            )


def _stored() -> Callable[[UUID], Any]:
    """How this database spells a UUID."""
    return (lambda value: value) if connection.features.has_native_uuid_field else (lambda value: value.hex)
