"""What every page needs: the signed-in person, and only what is theirs."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from django.http import HttpRequest
from django.shortcuts import get_object_or_404

from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job

PAGE = 50


def user_of(request: HttpRequest) -> User:
    """The person of a request that passed `login_required`."""
    return cast(User, request.user)


def own_job(request: HttpRequest, job_id: UUID) -> Job:
    """The person's job; another's does not exist for them (404)."""
    return get_object_or_404(Job, pk=job_id, owner=user_of(request))
