"""What every page needs: the signed-in person, and only what is theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast
from uuid import UUID

from allauth.account.decorators import reauthentication_required
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from labapex.protocol.api import Scope
from labapex_server.accounts import organisations
from labapex_server.accounts.models import User
from labapex_server.accounts.organisations import Acting
from labapex_server.jobs.models import Job

PAGE = 50

ACTING = "acting_for"
"""In a session: the key of the organisation for which its person acts."""

View = Callable[..., HttpResponseBase]


def signed_in(view: View) -> View:
    """For signed-in people whose role lets them see jobs and, where something is changed, submit and stop them: all who act for
    themselves, and members of the organisation for which they act."""
    return signed_in_to(Scope.JOBS_READ, Scope.JOBS_WRITE)(view)


def signed_in_to(read: Scope | None, write: Scope | None) -> Callable[[View], View]:
    """For signed-in people with the scope for what they read or change; None: for all of them.

    A fragment that is asked for after the session's end makes its page load again, which leads to the sign-in page; a sign-in
    page swapped into a table would help nobody."""

    def decorate(view: View) -> View:
        @wraps(view)
        def allowed(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            acting, scope = acting_of(request), read if request.method in ("GET", "HEAD") else write
            if scope is not None and scope not in acting.scopes:
                raise PermissionDenied(f"Your role in {acting.principal} ({acting.role}) does not allow this.")
            return view(request, *args, **kwargs)

        guarded = login_required(allowed)

        @wraps(view)
        def guard(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.headers.get("HX-Request") and not request.user.is_authenticated:
                return HttpResponse(status=401, headers={"HX-Refresh": "true"})
            return guarded(request, *args, **kwargs)

        return guard

    return decorate


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


def person_of(request: HttpRequest) -> User:
    """Who is signed in, of a request that passed `login_required`."""
    return cast(User, request.user)


def acting_of(request: HttpRequest) -> Acting:
    """Who is signed in, and for whom they act. Raises `PermissionDenied`, once, for who is no member any more: nothing is done
    in their own name that was meant for the organisation."""
    if not hasattr(request, "_acting"):
        try:
            request._acting = organisations.acting(person_of(request), request.session.get(ACTING))  # type: ignore[attr-defined]
        except organisations.NoMember:
            del request.session[ACTING]
            raise PermissionDenied(
                "You are not a member of that organisation any more, and act for yourself again."
            ) from None
    return cast(Acting, request._acting)  # type: ignore[attr-defined]


def user_of(request: HttpRequest) -> User:
    """To whom what is shown and made belongs: the person, or the organisation for which they act."""
    return acting_of(request).principal


def number(request: HttpRequest, name: str, default: int) -> int:
    """A whole number of the address, between -1 and what a database can hold; `default` for what is none."""
    try:
        return max(-1, min(int(request.GET.get(name, default)), 2**62))
    except ValueError:
        return default


def own_job(request: HttpRequest, job_id: UUID) -> Job:
    """The person's job; another's does not exist for them (404)."""
    return get_object_or_404(Job, pk=job_id, owner=user_of(request))
