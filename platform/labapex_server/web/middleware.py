"""What a page may load and do, and what an operator has to have. Nothing comes from another host and nothing inline runs,
so that text which slipped into a page from a job's console, name or verdict stays text."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.utils.deprecation import MiddlewareMixin

from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)


class ContentSecurityPolicy(MiddlewareMixin):
    """Adds the policy to each answer that has none of its own."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers.setdefault("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=()")
        return response


class OperatorsSecondFactor(MiddlewareMixin):
    """An operator's account opens no page before a stolen password alone does not open it: only those that secure it."""

    SECURING = ("account_", "mfa_", "usersessions_")

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponseBase | None:
        user, match = request.user, request.resolver_match
        if not isinstance(user, User) or not user.is_staff or accounts.has_second_factor(user):
            return None
        if match is not None and (match.url_name or "").startswith(self.SECURING):
            return None
        messages.error(request, "An operator's account needs a second factor before it opens anything: add one here.")
        return redirect("mfa_index")
