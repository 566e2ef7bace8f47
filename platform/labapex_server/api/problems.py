"""Every error of the API is a problem document (RFC 9457) with a stable code and a detail that says what to do."""

from __future__ import annotations

import logging
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions

from labapex.errors import LabApexError, MalformedInput, NotEnoughCredit, UsageError
from labapex_server.api.authentication import NO_TOKEN
from labapex_server.lib import problems
from labapex_server.lib.errors import Refused

log = logging.getLogger(__name__)


def handle(error: Exception, context: dict[str, Any]) -> HttpResponseBase:
    """DRF's exception handler."""
    status, code, detail = _describe(error)
    path = context["request"].path
    if status >= 500:
        log.error("%s could not be answered", path, exc_info=error)
    response = problems.response(status, code, detail, instance=path, errors=getattr(error, "errors", None))
    if isinstance(error, exceptions.APIException):
        if header := getattr(error, "auth_header", None):
            response["WWW-Authenticate"] = header
        if wait := getattr(error, "wait", None):
            response["Retry-After"] = str(int(wait) + 1)
    return response


@csrf_exempt
def nothing_here(request: HttpRequest) -> HttpResponse:
    return problems.response(404, "not-found", "there is nothing at this address; see /api/", instance=request.path)


def _describe(error: Exception) -> tuple[int, str, str]:
    match error:
        case Refused():
            return error.status, error.code, str(error)
        case NotEnoughCredit():
            return 402, "not-enough-credit", str(error)
        case MalformedInput() | UsageError():
            return 400, "invalid", str(error)
        case RequestDataTooBig():
            return 413, "too-large", "the request is too large"
        case Http404() | exceptions.NotFound():
            return 404, "not-found", "there is no such thing, or it is not yours"
        case exceptions.NotAuthenticated():
            return 401, "not-logged-in", NO_TOKEN
        case exceptions.AuthenticationFailed():
            return 401, "not-logged-in", str(error.detail)
        case exceptions.Throttled():
            return 429, "throttled", f"too many requests: {error.detail}"
        case exceptions.MethodNotAllowed():
            return 405, "method-not-allowed", str(error.detail)
        case exceptions.NotAcceptable():
            return 406, "not-acceptable", "the API answers in JSON; ask with 'Accept: application/json'"
        case PermissionDenied() | exceptions.PermissionDenied():
            return 403, "forbidden", "this is not allowed"
        case exceptions.APIException():
            return error.status_code, "invalid", str(error.detail)
        case LabApexError():
            return 500, "unavailable", "the platform could not do this; try again later"
    return 500, "internal", "something went wrong on the platform; it is on record there"
