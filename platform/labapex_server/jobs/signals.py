"""The one signal of a job's life. It is sent after commit, so that a listener finds what it was told about."""

from __future__ import annotations

from django.dispatch import Signal

advanced = Signal()  # sent with `job_id: UUID` and `state: JobState`
