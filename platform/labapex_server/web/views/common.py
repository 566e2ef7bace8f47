"""What every page needs: the signed-in person, and only what is theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast
from uuid import UUID

from allauth.account.decorators import reauthentication_required
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from labapex_server.accounts.models import User
from labapex_server.jobs.models import Job

PAGE = 50

View = Callable[..., HttpResponseBase]


def signed_in(view: View) -> View:
    """For signed-in people only. A fragment that is asked for after the session's end makes its page load again, which
    leads to the sign-in page; a sign-in page swapped into a table would help nobody."""
    guarded = login_required(view)

    @wraps(view)
    def guard(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if request.headers.get("HX-Request") and not request.user.is_authenticated:
            return HttpResponse(status=401, headers={"HX-Refresh": "true"})
        return guarded(request, *args, **kwargs)

    return guard


def shown_again(when: Callable[[HttpRequest], bool]) -> Callable[[View], View]:
    """For those who have just shown once more that it is them, where the request is one for `when`; it waits meanwhile."""
    return cast(Callable[[View], View], reauthentication_required(enabled=when))


class Attempts(SimpleRateThrottle):
    """How often one address may try codes of programs: as often as passwords at the REST door."""

    scope = "login"
    cache_format = "throttle_portal_%(scope)s_%(ident)s"

    def get_cache_key(self, request: Request, view: APIView) -> str:
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}


def too_often(request: HttpRequest) -> bool:
    """Count one attempt of this address; True where it was one too many."""
    return not Attempts().allow_request(cast(Request, request), cast(APIView, None))


def user_of(request: HttpRequest) -> User:
    """The person of a request that passed `login_required`."""
    return cast(User, request.user)


def number(request: HttpRequest, name: str, default: int) -> int:
    """A whole number of the address, between -1 and what a database can hold; `default` for what is none."""
    try:
        return max(-1, min(int(request.GET.get(name, default)), 2**62))
    except ValueError:
        return default


def own_job(request: HttpRequest, job_id: UUID) -> Job:
    """The person's job; another's does not exist for them (404)."""
    return get_object_or_404(Job, pk=job_id, owner=user_of(request))
