"""The daemon's log: for people on a terminal, for programs everywhere else, one JSON object a line.

A line about a lease begins with `"lease %s: "`; its id, and that of the job it is for, become fields of their own.
Neither keys nor tokens are ever logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from uuid import UUID

from labapex_worker.status import Trouble

JOBS: dict[UUID, UUID] = {}
"""Lease to job, of all leases that this daemon has met. Only the log reads it."""

_QUIET = ("httpx", "httpcore", "websockets", "asyncio")
MAX_TEXT = 1000


class JsonLines(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, and `lease`, `job`, `trace` where there are such."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (lease := _lease(record)) is not None:
            line["lease"] = str(lease)
            if (job := JOBS.get(lease)) is not None:
                line["job"] = str(job)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)  # ASCII: no text in it can command a terminal, nor break the line


class LastTrouble(logging.Handler):
    """Remembers the last warning or error, for `status`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last: Trouble | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = Trouble(at=record.created, text=record.getMessage()[:MAX_TEXT])


def configure(*, verbose: bool = False) -> None:
    """Log to standard error, from now on."""
    to = logging.StreamHandler(sys.stderr)
    to.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)-7s %(message)s") if sys.stderr.isatty() else JsonLines()
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[to])
    for noisy in _QUIET:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _lease(record: logging.LogRecord) -> UUID | None:
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return first if isinstance(first, UUID) and str(record.msg).startswith("lease %s") else None
