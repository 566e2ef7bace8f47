"""Celery is the doorbell, never the queue: a message says "look at this job", and the row says what there is to do.

So every broker is safe, one that forgets included. `memory://` lives within the one process of `manage.py serve`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "labapex_server.settings")

ERASE_SECONDS = 60.0
"""Between two rounds of deleting what was kept long enough."""


SANDBOXED = ("preflight", "resume", "verify", "dispute")
"""Tasks that run foreign code, for minutes: a queue of their own keeps the others from waiting behind them, and lets only
machines take them that are made for it."""


def sandboxed(queue: str) -> str:
    """The name of the queue of such tasks, beside this one."""
    return f"{queue}-sandbox"


def _options(broker_url: str, longest: float) -> dict[str, object]:
    """What keeps a task from being lost or run twice on this broker; `longest` is the longest task in seconds."""
    if broker_url.startswith("memory"):
        return {"polling_interval": 0.1}
    if broker_url.startswith("redis"):
        # Twice the longest task, or it is given out again while it runs; throttle 1, or recovery takes minutes more.
        return {"visibility_timeout": 2 * longest, "unacked_restore_throttle": 1}
    return {"confirm_publish": True}


def make(broker_url: str, *, longest: float, sweep_seconds: float, name: str = "labapex") -> Celery:
    """The application for a broker."""
    app = Celery("labapex_server", broker=broker_url)
    queue: Any = import_module("kombu").Queue  # kombu has no types
    arguments: dict[str, object] = {}
    if broker_url.startswith("amqp"):
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": 5,
            "x-consumer-timeout": int(2 * longest * 1000),  # milliseconds; else the broker closes the worker's channel
        }
    app.conf.update(
        task_queues=[queue(each, queue_arguments=arguments) for each in (name, sandboxed(name))],
        task_default_queue=name,
        task_routes={task: {"queue": sandboxed(name)} for task in SANDBOXED},
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_time_limit=longest,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=_options(broker_url, longest),
        beat_scheduler="celery.beat:Scheduler",  # its schedule is this table: nothing to keep on disk
        beat_max_loop_interval=max(0.1, min(sweep_seconds, 5)),
        beat_schedule={
            "sweep": {"task": "sweep", "schedule": sweep_seconds, "options": {"expires": 5 * sweep_seconds}},
            "erase": {"task": "erase", "schedule": ERASE_SECONDS, "options": {"expires": ERASE_SECONDS}},
        },
        imports=("labapex_server.pipeline.tasks",),
    )
    return app


def _make() -> Celery:
    from django.conf import settings

    config = settings.LABAPEX
    return make(
        config.broker_url, longest=config.longest_task_seconds, sweep_seconds=config.sweep_seconds, name=config.queue
    )


app = _make()
app.set_default()

__all__ = ["SANDBOXED", "app", "make", "sandboxed"]
