"""How a worker is: what `status`, the page of metrics and the control socket tell. No token and no key is in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from uuid import UUID

from pydantic import Field

from labapex.errors import LabApexError
from labapex.protocol.canonical import Message
from labapex_worker import journal, regeneration
from labapex_worker.config import Home
from labapex_worker.limits import Limits
from labapex_worker.phases import Phase
from labapex_worker.spool import Lease
from labapex_worker.supervisor import Folder
from labapex_worker.wishes import Wish


class LeaseStatus(Message):
    """One lease on this host."""

    lease: UUID
    job: UUID
    name: str
    phase: Phase
    process: str  # "runs", how it ended, or "-" before it began
    iterations: int  # whose losses came from the executable
    total: int | None  # of the whole run; None until the executable was fetched
    frames_kept: int  # that the platform does not hold yet
    reason: str


class Trouble(Message):
    """The last line of the log that was a warning or worse."""

    at: float  # Unix time
    text: str


class Status(Message):
    """One worker. Sizes in bytes, times in Unix seconds."""

    type: Literal["status"] = "status"
    worker: UUID
    name: str
    platform: str
    pid: int | None  # of the daemon; None: none runs, and what only it knows is None, too
    connected_since: float | None = None
    wish: Wish
    held: str | None = None  # why it takes no work; None: it does
    devices: tuple[str, ...] = ()
    power_watts: float | None = None
    temperature: float | None = None
    limits: Limits
    leases: tuple[LeaseStatus, ...] = Field(default=(), max_length=64)
    spool_bytes: int
    spool_limit: int
    disk_free: int
    disk_limit: int  # of one job
    trouble: Trouble | None = None


def of_leases(home: Home, leases: Iterable[Lease]) -> tuple[LeaseStatus, ...]:
    """The leases as they are on the disk."""
    return tuple(_lease(home, lease) for lease in leases)


def _lease(home: Home, lease: Lease) -> LeaseStatus:
    folder, process = Folder(home.lease(lease.id)), "-"
    match journal.look(folder.path):
        case journal.Alive():
            process = "runs"
        case journal.Ended() as ended:
            process = str(ended)
    return LeaseStatus(
        lease=lease.id,
        job=lease.grant.job,
        name=lease.grant.name,
        phase=lease.phase,
        process=process,
        iterations=lease.next,
        total=_total(folder) if lease.phase is not Phase.GRANTED else None,
        frames_kept=lease.seq - lease.base,
        reason=lease.reason,
    )


def _total(folder: Folder) -> int | None:
    try:
        terms = regeneration.contract(folder)
    except (LabApexError, OSError):  # it failed before its executable was whole
        return None
    return terms.epochs * terms.facts.iterations_per_epoch
