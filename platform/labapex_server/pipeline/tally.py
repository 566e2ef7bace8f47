"""Counts what the pipeline's tasks did: over all of its processes, and through their ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import StrEnum

from django.db import DatabaseError
from django.db.models import F

from labapex_server.lib import clock
from labapex_server.pipeline.models import Tally

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    DONE = "done"
    LOST = "lost"  # someone else has the job by now
    FAILED = "failed"  # it is tried again
    GIVEN_UP = "given-up"  # the job ended by it


def counted(task: str, work: Callable[[], Outcome]) -> Outcome:
    """Do some work and count it; what it raises counts as failed and goes on."""
    began, outcome = time.monotonic(), Outcome.FAILED
    try:
        outcome = work()
        return outcome
    finally:
        _add(task, outcome, time.monotonic() - began)


def _add(task: str, outcome: Outcome, seconds: float) -> None:
    now = clock.now()
    counts = {"count": F("count") + 1, "seconds": F("seconds") + seconds, "last_at": now}
    row = {"task": task, "outcome": outcome.value}
    try:
        if not Tally.objects.filter(**row).update(**counts):
            Tally.objects.get_or_create(**row, defaults={"last_at": now})
            Tally.objects.filter(**row).update(**counts)
    except DatabaseError as error:  # the work is done; a count is not worth its repetition
        log.warning("%s was not counted: %s", task, error)
