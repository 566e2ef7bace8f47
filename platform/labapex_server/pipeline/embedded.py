"""Celery's own worker and beat as threads of the web process: one command starts the whole platform on a laptop.

Exactly one process may do so, which a file lock sees to. Children of the pool threads die with their process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from typing import IO, Any

from celery.beat import EmbeddedService
from django.conf import settings

from labapex.errors import UsageError
from labapex_server.celery import app
from labapex_server.pipeline.sweep import forget_claims

log = logging.getLogger(__name__)


class Embedded:
    """The pipeline of this process. Raises `UsageError` where another process has it."""

    def __init__(self) -> None:
        self._lock = _lock()
        forget_claims()
        self._worker: Any = app.WorkController(
            pool="threads",
            concurrency=settings.LABAPEX.pipeline_threads,
            hostname=f"embedded@{os.getpid()}",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="WARNING",
        )
        self._beat: Any = EmbeddedService(app, thread=True, scheduler_cls="celery.beat:Scheduler")
        self._thread = threading.Thread(target=self._worker.start, name="pipeline", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._beat.start()

    def stop(self) -> None:
        """Take no more work and wait for what runs; whatever is cut off goes on at the next start."""
        if self._beat.is_alive():
            self._beat.stop()
        self._worker.stop(in_sighandler=False)
        self._lock.close()


def _lock() -> IO[str]:
    path = settings.LABAPEX.private_folder() / "serve.lock"
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"another `serve` runs the pipeline of {path.parent}; stop it, start this one with --no-pipeline,"
            " or set LABAPEX_BROKER_URL and run several"
        ) from None
    os.set_inheritable(file.fileno(), False)
    return file
