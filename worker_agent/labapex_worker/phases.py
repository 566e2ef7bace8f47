"""Where a lease stands on this host: the word that session, spool and daemon share."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    GRANTED = "granted"  # the executable is to be fetched and verified
    STARTING = "starting"  # to be started
    RUNNING = "running"
    FINISHED = "finished"  # its log is complete here and on its way
    CLOSED = "closed"  # the platform holds the whole log; states may be asked for
    STOPPED = "stopped"  # by the client: nothing more is sent of its log; states may be asked for
    FAILED = "failed"  # to be reported, after what there is of its log
    RELEASED = "released"  # to be deleted
