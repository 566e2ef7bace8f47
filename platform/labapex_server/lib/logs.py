"""How the platform's logs look: a line an event, with the ids of what it is about.

Modules log by the standard library. What an event is about (`request`, `job`, `lease`, `worker`, `task`) is bound once, where
a door or the pipeline begins with it, and stands on every line until its end, in whatever module and thread it is written.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars, merge_contextvars

Event = MutableMapping[str, Any]
Format = Literal["text", "json"]

BOUND = ("request", "task", "job", "lease", "worker")
"""What lines may be about, in the order in which text shows it."""


def about(**ids: object) -> None:
    """What follows in this request, connection or task is about these."""
    bind_contextvars(**{name: str(value) for name, value in ids.items()})


@contextmanager
def on(**ids: object) -> Iterator[None]:
    """Likewise, and whatever is said by `about` meanwhile, until this ends."""
    before = get_contextvars()
    about(**ids)
    try:
        yield
    finally:
        clear_contextvars()
        bind_contextvars(**before)


def new_request() -> str:
    """An id for a request; what a client calls it is not asked."""
    return secrets.token_hex(8)


def logging_of(look: Format) -> dict[str, Any]:
    """Django's LOGGING. Everything goes to standard error: whoever starts the process keeps it."""
    levels = {
        "celery": "WARNING",
        "kombu": "ERROR",
        "django.request": "ERROR",  # a refused request is an answer, not an event
        "uvicorn": "WARNING",
        "uvicorn.access": "ERROR",
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter, "look": look}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["console"], "level": "INFO"},
        "loggers": {name: {"level": level} for name, level in levels.items()},
    }


def formatter(look: Format) -> structlog.stdlib.ProcessorFormatter:
    end: list[Any] = [_text] if look == "text" else [structlog.processors.JSONRenderer(ensure_ascii=False)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,  # as Python writes it: the values of variables may be secrets
            *end,
        ],
    )


def _text(logger: object, name: str, event: Event) -> str:
    ids = " ".join(f"{each}={event[each]}" for each in BOUND if each in event)
    line = (
        f"{event['timestamp']} {event['level'].upper()} {event['logger']} {event['event']}{f' [{ids}]' if ids else ''}"
    )
    return f"{line}\n{event['exception']}" if "exception" in event else line
