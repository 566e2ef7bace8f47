"""Lists, a page at a time. A cursor is the place after the last row shown, so that new rows shift nothing."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from django.conf import settings
from django.db.models import Q

from labapex.protocol.api import JobPage
from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import view, viewable
from labapex_server.lib.errors import Refused


def jobs(owner: User, *, cursor: str) -> JobPage:
    """The owner's jobs, the newest first. Raises `Refused` for a cursor that is none."""
    rows = viewable(Job.objects.filter(owner=owner)).order_by("-created_at", "-id")
    if cursor:
        at, job_id = _parse(cursor)
        rows = rows.filter(Q(created_at__lt=at) | Q(created_at=at, id__lt=job_id))
    size = settings.LABAPEX.page_size
    page = list(rows[: size + 1])
    more = len(page) > size
    page = page[:size]
    last = page[-1] if more else None
    return JobPage(
        results=tuple(view(job) for job in page), next=f"{last.created_at.isoformat()}_{last.pk}" if last else None
    )


def _parse(cursor: str) -> tuple[datetime, UUID]:
    at, _, job_id = cursor[:100].partition("_")
    try:
        return datetime.fromisoformat(at), UUID(job_id)
    except ValueError:
        raise Refused("this is not a cursor; leave it out to begin with the newest job") from None
