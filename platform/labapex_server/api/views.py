"""REST for programs. A door: it translates and holds no rule. Others' things do not exist for the caller (404)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.cache import get_conditional_response
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.protocol.api import EnrolmentCode, Events, JobPage, JobRequest, JobView, Me, Scope, Storage
from labapex.protocol.verdict import Receipt, SignedVerdict
from labapex.trust import fingerprint
from labapex_server.accounts.models import Token
from labapex_server.api import idempotency, pages, receipts, tokens
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer, body, own_job, user_of
from labapex_server.jobs import blobs
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import viewable
from labapex_server.ledger import services as ledger
from labapex_server.lib import keys, trust
from labapex_server.telemetry import services as telemetry
from labapex_server.transparency import starts
from labapex_server.verification import erasing, proofs
from labapex_server.verification import services as verification
from labapex_server.workers import services as workers

_CHUNK = 1 << 20
_ETAG = [
    OpenApiParameter("ETag", str, OpenApiParameter.HEADER, description="Of this answer.", response=[200, 304]),
    OpenApiParameter(
        "If-None-Match", str, OpenApiParameter.HEADER, description="The ETag of the answer that you have."
    ),
]


class MeView(APIView):
    scopes = needs(GET=None)

    @extend_schema(operation_id="whoami", tags=["account"], summary="Who a token speaks for", responses=Me)
    def get(self, request: Request) -> HttpResponse:
        user, token = user_of(request), request.auth
        assert isinstance(token, Token)
        available = held = spent = None
        if Scope.BILLING_READ in token.granted:
            account = ledger.account_of(user)
            balance, spent = ledger.balance(account), ledger.spent(account)
            available, held = balance.available, balance.held
        name, organisation = tokens.names(token)
        me = Me(
            username=name,
            organisation=organisation,
            available=available,
            held=held,
            spent=spent,
            token=tokens.view(token),
        )
        return answer(me)


class BlobView(APIView):
    """`PUT` of the same address is `api.uploads`: it must not pass through Django. Both are described in `api.schema`."""

    scopes = needs(HEAD=Scope.JOBS_WRITE)

    def head(self, request: Request, digest: str) -> HttpResponse:
        if blobs.find(user_of(request), digest) is not None:
            return HttpResponse()
        return HttpResponse(status=404, headers={"Upload-Offset": str(blobs.begun(user_of(request), digest))})


class Jobs(APIView):
    scopes = needs(GET=Scope.JOBS_READ, POST=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="list_jobs",
        tags=["jobs"],
        summary="Your jobs, the newest first",
        parameters=pages.PARAMETERS,
        responses=JobPage,
    )
    def get(self, request: Request) -> HttpResponse:
        found, following = pages.page(viewable(Job.objects.filter(owner=user_of(request))), request)
        return answer(JobPage(results=tuple(jobs.view(job) for job in found), next=following))

    @extend_schema(
        operation_id="submit_job",
        tags=["jobs"],
        summary="Submit a job whose files were uploaded",
        request=JobRequest,
        parameters=[idempotency.PARAMETER],
        responses={201: JobView},
    )
    def post(self, request: Request) -> HttpResponse:
        key = idempotency.key_of(request)
        job = starts.submit(user_of(request), request=body(request, JobRequest), idempotency_key=key)
        return answer(jobs.view(job), 201)


class JobDetail(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="show_job",
        tags=["jobs"],
        summary="One job",
        parameters=_ETAG,
        responses={200: JobView, 304: OpenApiResponse(description="It is as you have it.")},
    )
    def get(self, request: Request, job: UUID) -> HttpResponseBase:
        reply = answer(jobs.view(own_job(request, job)))
        etag = f'"{hashlib.sha256(reply.content).hexdigest()[:32]}"'
        reply["ETag"] = etag
        found = get_conditional_response(request._request, etag=etag, response=reply)
        assert found is not None
        return found


class JobEvents(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="job_events",
        tags=["jobs"],
        summary="What is new of a job since a cursor",
        parameters=[OpenApiParameter("cursor", str, description="Of the answer before; left out to begin.")],
        responses=Events,
    )
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(telemetry.events(own_job(request, job), request.query_params.get("cursor", "")))


class JobStop(APIView):
    scopes = needs(POST=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="stop_job",
        tags=["jobs"],
        summary="Stop a job: its complete epochs are verified and paid; one that has ended stays as it is",
        request=None,
        responses=JobView,
    )
    def post(self, request: Request, job: UUID) -> HttpResponse:
        return answer(jobs.view(verification.stop(own_job(request, job))))


class JobData(APIView):
    scopes = needs(DELETE=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="delete_job_data",
        tags=["jobs"],
        summary="Delete what is stored of a job that has ended; what its verdict may be contested with, once that is over",
        responses={200: JobView},
    )
    def delete(self, request: Request, job: UUID) -> HttpResponse:
        return answer(jobs.view(erasing.ask(own_job(request, job))))


class Stores(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(operation_id="storage", tags=["files"], summary="What your data takes", responses=Storage)
    def get(self, request: Request) -> HttpResponse:
        return answer(erasing.storage(user_of(request)))


class StoredFiles(APIView):
    scopes = needs(DELETE=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="delete_files",
        tags=["files"],
        summary="Delete your files that no job needs",
        responses={200: Storage},
    )
    def delete(self, request: Request) -> HttpResponse:
        erasing.forget_files(user_of(request))
        return answer(erasing.storage(user_of(request)))


class JobResume(APIView):
    scopes = needs(POST=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="resume_job",
        tags=["jobs"],
        summary="Let a stopped job go on behind its last paid epoch, with the rest of its budget",
        request=None,
        responses=JobView,
    )
    def post(self, request: Request, job: UUID) -> HttpResponse:
        return answer(jobs.view(verification.go_on(own_job(request, job))))


class JobVerdict(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="job_verdict", tags=["results"], summary="The signed verdict on a job", responses=SignedVerdict
    )
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(verification.signed(own_job(request, job)))


class JobReceipt(APIView):
    scopes = needs(GET=Scope.BILLING_READ)

    @extend_schema(operation_id="job_receipt", tags=["results"], summary="Where a job's money went", responses=Receipt)
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(receipts.receipt(own_job(request, job)))


class JobWeights(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="job_weights",
        tags=["results"],
        summary="The verified weights, as safetensors",
        responses={(200, "application/octet-stream"): bytes},
    )
    def get(self, request: Request, job: UUID) -> HttpResponseBase:
        path, digest = verification.weights(own_job(request, job))
        response = StreamingHttpResponse(_chunks(path), content_type="application/octet-stream")
        response["Content-Length"] = str(path.stat().st_size)
        response["X-Labapex-Digest"] = digest
        return response


class JobProof(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="job_proof",
        tags=["results"],
        summary="The proof folder of a judged job, as a tar",
        responses={(200, "application/x-tar"): bytes},
    )
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


class VerdictKeyView(APIView):
    """Public: anyone may check a verdict."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(
        operation_id="verdict_key",
        tags=["keys and log"],
        summary="The key that signs verdicts",
        responses=receipts.PublicKey,
    )
    def get(self, request: Request) -> HttpResponse:
        public = keys.verdict_public_key()
        return answer(receipts.PublicKey(key_id=keys.key_id(public), public_key=base64.b64encode(public).decode()))


class Enrolments(APIView):
    scopes = needs(POST=Scope.WORKERS_WRITE)

    @extend_schema(
        operation_id="new_enrolment_code",
        tags=["workers"],
        summary="A code that enrols one host in your name",
        request=None,
        parameters=[idempotency.PARAMETER],
        responses={201: EnrolmentCode},
    )
    def post(self, request: Request) -> HttpResponse:
        def make() -> EnrolmentCode:
            code, expires = workers.new_code(user_of(request))
            return EnrolmentCode(code=code, expires_at=expires.timestamp(), root=fingerprint(trust.root()))

        body = idempotency.once(user_of(request), request, make)
        return HttpResponse(body, status=201, content_type="application/json")
