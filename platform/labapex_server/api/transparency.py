"""The public log over REST: nobody has to log in to check it, and no answer costs more than a page of entries."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.certificate import CertificateBundle, PlatformKeys, RevocationStatus
from labapex.protocol.api import Scope
from labapex.transparency import Consistency, Entries, Head, Inclusion
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer, own_job
from labapex_server.lib.errors import Refused
from labapex_server.transparency import certificates, revocations
from labapex_server.transparency import services as log

_DIGITS = 15
_OPTIONAL = {"start", "count"}


class _Public(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)


def _numbers(*names: str) -> list[OpenApiParameter]:
    kind = {"type": "integer", "minimum": 0, "maximum": 10**_DIGITS - 1}
    return [OpenApiParameter(name, kind, required=name not in _OPTIONAL) for name in names]


def _number(request: Request, name: str, default: int | None = None) -> int:
    text = request.query_params.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise Refused(f"'{name}' must be a number from 0 on, for example ?{name}=1")
    return int(text)


class LogHead(_Public):
    @extend_schema(
        operation_id="log_head",
        tags=["keys and log"],
        summary="The log's present head, signed",
        responses=Head,
    )
    def get(self, request: Request) -> HttpResponse:
        return answer(log.head())


class LogEntries(_Public):
    @extend_schema(
        operation_id="log_entries",
        tags=["keys and log"],
        summary="Entries of the log, in order",
        parameters=_numbers("start", "count"),
        responses=Entries,
    )
    def get(self, request: Request) -> HttpResponse:
        return answer(log.entries(start=_number(request, "start", 0), count=_number(request, "count", log.PAGE)))


class LogInclusion(_Public):
    @extend_schema(
        operation_id="log_inclusion",
        tags=["keys and log"],
        summary="That an entry is in the log of a size",
        parameters=_numbers("index", "size"),
        responses=Inclusion,
    )
    def get(self, request: Request) -> HttpResponse:
        return answer(log.inclusion(_number(request, "index"), _number(request, "size")))


class LogConsistency(_Public):
    @extend_schema(
        operation_id="log_consistency",
        tags=["keys and log"],
        summary="That the log of one size only grew to another",
        parameters=_numbers("first", "second"),
        responses=Consistency,
    )
    def get(self, request: Request) -> HttpResponse:
        return answer(log.consistency(_number(request, "first"), _number(request, "second")))


class LogRevocation(_Public):
    @extend_schema(
        operation_id="certificate_revocation",
        tags=["keys and log"],
        summary="Whether the log takes a certificate back",
        responses=RevocationStatus,
    )
    def get(self, request: Request, certificate: str) -> HttpResponse:
        return answer(revocations.status(certificate))


class Keys(_Public):
    """What a reader of certificates has to trust: keep it, and give it to `labapex verify --key`."""

    @extend_schema(
        operation_id="platform_keys",
        tags=["keys and log"],
        summary="The keys that certificates stand on",
        responses=PlatformKeys,
    )
    def get(self, request: Request) -> HttpResponse:
        return answer(certificates.public_keys())


class JobCertificate(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="job_certificate",
        tags=["results"],
        summary="The certificate of a verified job, with its proofs",
        responses=CertificateBundle,
    )
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(certificates.bundle(own_job(request, job)))
