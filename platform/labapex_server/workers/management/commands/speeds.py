"""`manage.py speeds`: what every worker was made to show, and who shows much less than others of the same device's name."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from labapex_server.workers import speed
from labapex_server.workers.models import Worker


class Command(BaseCommand):
    help = "List the measured speeds of all workers, and the suspicious ones."

    def handle(self, *_: Any, **__: Any) -> None:
        suspected = {found.worker.pk: found for found in speed.suspicions()}
        for worker in Worker.objects.order_by("created_at"):
            shown = "not measured" if worker.speed is None else f"{worker.speed:,.0f} GFLOP/s"
            line = f"{worker.pk} {worker.name}: {speed.first_device(worker) or 'no device'}: {shown}"
            self.stdout.write(line + (f"  SUSPICIOUS: {suspected[worker.pk]}" if worker.pk in suspected else ""))
