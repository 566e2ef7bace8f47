"""The one hint that there is more to see of a job. It may be lost: whoever listens also looks by itself."""

from __future__ import annotations

from django.dispatch import Signal

progressed = Signal()  # sent after commit with `job_id`
