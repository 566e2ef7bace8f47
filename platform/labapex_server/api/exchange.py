"""What every endpoint does: read a body, know the caller, find what is theirs, answer."""

from __future__ import annotations

from typing import TypeVar
from uuid import UUID

from django.http import Http404, HttpResponse
from pydantic import ValidationError
from rest_framework.request import Request

from labapex.protocol.canonical import Message, complaints, explain
from labapex_server.accounts.models import User
from labapex_server.api.limits import SMALL
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Refused, TooLarge

M = TypeVar("M", bound=Message)


def body(request: Request, model: type[M]) -> M:
    """The request's JSON as a message. Raises `Refused` that names the fields."""
    data = request._request.body
    if len(data) > SMALL:
        raise TooLarge(f"the body has {len(data)} bytes; at most {SMALL} are accepted here")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise Refused(f"{model.__name__}: {explain(error)}", errors=complaints(error)) from None


def answer(message: Message, status: int = 200) -> HttpResponse:
    """A message as the body of a reply."""
    return HttpResponse(message.model_dump_json(), status=status, content_type="application/json")


def user_of(request: Request) -> User:
    assert isinstance(request.user, User)
    return request.user


def own_job(request: Request, job_id: UUID) -> Job:
    """The caller's job; another's does not exist for them (404)."""
    job = jobs.find(user_of(request), job_id)
    if job is None:
        raise Http404
    return job
