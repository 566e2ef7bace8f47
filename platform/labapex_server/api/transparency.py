"""The public log over REST: nobody has to log in to check it, and no answer costs more than a page of entries."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.certificate import CertificateBundle, PlatformKeys
from labapex.transparency import Consistency, Entries, Head, Inclusion
from labapex_server.api.views import answer, own_job
from labapex_server.lib.errors import Refused
from labapex_server.transparency import certificates
from labapex_server.transparency import services as log

_DIGITS = 15


class _Public(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)


def _numbers(*names: str) -> list[OpenApiParameter]:
    return [OpenApiParameter(name, int) for name in names]


def _number(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise Refused(f"'{name}' must be a number from 0 on, for example ?{name}=1")
    return int(text)


class LogHead(_Public):
    @extend_schema(responses=Head)
    def get(self, request: Request) -> HttpResponse:
        return answer(log.head())


class LogEntries(_Public):
    @extend_schema(parameters=_numbers("start", "count"), responses=Entries)
    def get(self, request: Request) -> HttpResponse:
        return answer(log.entries(start=_number(request, "start", 0), count=_number(request, "count", log.PAGE)))


class LogInclusion(_Public):
    @extend_schema(parameters=_numbers("index", "size"), responses=Inclusion)
    def get(self, request: Request) -> HttpResponse:
        return answer(log.inclusion(_number(request, "index"), _number(request, "size")))


class LogConsistency(_Public):
    @extend_schema(parameters=_numbers("first", "second"), responses=Consistency)
    def get(self, request: Request) -> HttpResponse:
        return answer(log.consistency(_number(request, "first"), _number(request, "second")))


class Keys(_Public):
    """What a reader of certificates has to trust: keep it, and give it to `labapex verify --key`."""

    @extend_schema(responses=PlatformKeys)
    def get(self, request: Request) -> HttpResponse:
        return answer(certificates.public_keys())


class JobCertificate(APIView):
    @extend_schema(responses=CertificateBundle)
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(certificates.bundle(own_job(request, job)))
