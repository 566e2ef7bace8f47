"""The hint that a worker's answer waits for the platform's next step. It may be lost: the sweep looks by itself."""

from __future__ import annotations

from django.dispatch import Signal

answered = Signal()  # sent after commit with `job_id`
