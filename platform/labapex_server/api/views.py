"""REST for programs. A door: it translates and holds no rule. Others' things do not exist for the caller (404)."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from django.contrib.auth import authenticate
from django.http import Http404, HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.throttling import ScopedRateThrottle
from rest_framework.views import APIView

from labapex.protocol.api import (
    EnrolmentCode,
    Events,
    JobPage,
    JobRequest,
    JobView,
    Login,
    Me,
    NewToken,
)
from labapex.protocol.canonical import Message, parse
from labapex.protocol.verdict import Receipt, SignedVerdict
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import User
from labapex_server.api import pages, receipts
from labapex_server.api.limits import SMALL
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import keys
from labapex_server.lib.errors import Refused
from labapex_server.telemetry import services as telemetry
from labapex_server.verification import proofs
from labapex_server.verification import services as verification
from labapex_server.workers import services as workers

M = TypeVar("M", bound=Message)
_CHUNK = 1 << 20


def _body(request: Request, model: type[M]) -> M:
    """The request's JSON as a message. Raises `MalformedInput`."""
    return parse(model, request._request.body, limit=SMALL)


def answer(message: Message, status: int = 200) -> HttpResponse:
    """A message as the body of a reply."""
    return HttpResponse(message.model_dump_json(), status=status, content_type="application/json")


def _user(request: Request) -> User:
    assert isinstance(request.user, User)
    return request.user


def own_job(request: Request, job_id: UUID) -> Job:
    """The caller's job; another's does not exist for them (404)."""
    job = jobs.find(_user(request), job_id)
    if job is None:
        raise Http404
    return job


class Tokens(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = (ScopedRateThrottle,)
    throttle_scope = "login"

    @extend_schema(request=Login, responses={201: NewToken})
    def post(self, request: Request) -> HttpResponse:
        login = _body(request, Login)
        user = authenticate(request._request, username=login.username, password=login.password)
        if not isinstance(user, User):
            raise AuthenticationFailed("user name and password do not belong together")
        return answer(NewToken(token=accounts.issue_token(user, name=login.name)), 201)

    def get_authenticate_header(self, request: Request) -> str:
        return "Token"  # so that a failed login is 401, not 403


class MeView(APIView):
    @extend_schema(responses=Me)
    def get(self, request: Request) -> HttpResponse:
        user = _user(request)
        balance = ledger.balance(ledger.account_of(user))
        return answer(Me(username=user.get_username(), available=balance.available, held=balance.held))


class BlobView(APIView):
    """`PUT` of the same address is `api.uploads`: it must not pass through Django."""

    @extend_schema(responses={200: None, 404: None})
    def head(self, request: Request, digest: str) -> HttpResponse:
        if blobs.find(_user(request), digest) is None:
            raise Http404
        return HttpResponse()


class Jobs(APIView):
    @extend_schema(parameters=[OpenApiParameter("cursor", str)], responses=JobPage)
    def get(self, request: Request) -> HttpResponse:
        return answer(pages.jobs(_user(request), cursor=request.query_params.get("cursor", "")))

    @extend_schema(
        request=JobRequest,
        parameters=[OpenApiParameter("Idempotency-Key", str, OpenApiParameter.HEADER)],
        responses={201: JobView},
    )
    def post(self, request: Request) -> HttpResponse:
        key = request.headers.get("Idempotency-Key")
        if key is not None and not 0 < len(key) <= 200:
            raise Refused("Idempotency-Key must have 1 to 200 characters")
        job = jobs.submit(_user(request), request=_body(request, JobRequest), idempotency_key=key)
        return answer(jobs.view(job), 201)


class JobDetail(APIView):
    @extend_schema(responses=JobView)
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(jobs.view(own_job(request, job)))


class JobEvents(APIView):
    @extend_schema(parameters=[OpenApiParameter("cursor", str)], responses=Events)
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(telemetry.events(own_job(request, job), request.query_params.get("cursor", "")))


class JobStop(APIView):
    @extend_schema(request=None, responses=JobView)
    def post(self, request: Request, job: UUID) -> HttpResponse:
        return answer(jobs.view(jobs.stop(own_job(request, job))))


class JobVerdict(APIView):
    @extend_schema(responses=SignedVerdict)
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(verification.signed(own_job(request, job)))


class JobReceipt(APIView):
    @extend_schema(responses=Receipt)
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(receipts.receipt(own_job(request, job)))


class JobWeights(APIView):
    @extend_schema(responses={(200, "application/octet-stream"): bytes})
    def get(self, request: Request, job: UUID) -> HttpResponseBase:
        path, digest = verification.weights(own_job(request, job))
        response = StreamingHttpResponse(_chunks(path), content_type="application/octet-stream")
        response["Content-Length"] = str(path.stat().st_size)
        response["X-Labapex-Digest"] = digest
        return response


class JobProof(APIView):
    @extend_schema(responses={(200, "application/x-tar"): bytes})
    def get(self, request: Request, job: UUID) -> HttpResponseBase:
        size, parcel = proofs.stream(*proofs.prepare(own_job(request, job)))
        response = StreamingHttpResponse(_pieces(parcel), content_type="application/x-tar")
        response["Content-Length"] = str(size)
        response["Content-Disposition"] = f'attachment; filename="proof-{job}.tar"'
        return response


async def _pieces(parcel: Iterator[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(next, parcel, b""):
        yield piece


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    """An asynchronous stream: a synchronous one would be read into memory whole under ASGI."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
    finally:
        file.close()


class VerdictKey(APIView):
    """Public: anyone may check a verdict."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(responses={200: {"type": "object", "properties": {"key_id": {}, "public_key": {}}}})
    def get(self, request: Request) -> HttpResponse:
        public = keys.verdict_public_key()
        return answer(receipts.PublicKey(key_id=keys.key_id(public), public_key=base64.b64encode(public).decode()))


class Enrolments(APIView):
    @extend_schema(request=None, responses={201: EnrolmentCode})
    def post(self, request: Request) -> HttpResponse:
        code, expires = workers.new_code(_user(request))
        return answer(EnrolmentCode(code=code, expires_at=expires.timestamp()), 201)
