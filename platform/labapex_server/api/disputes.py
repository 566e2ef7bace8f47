"""Contesting a verdict over REST. Whoever is no party of a dispute does not meet it (404)."""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.protocol.api import Scope
from labapex.protocol.ruling import DisputePage, DisputeRequest, DisputeTerms, DisputeView
from labapex_server.api import idempotency, pages
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer, body, user_of
from labapex_server.disputes import services as disputes


class Disputes(APIView):
    scopes = needs(GET=Scope.JOBS_READ, POST=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="list_disputes",
        tags=["disputes"],
        summary="Disputes in which you are a party, the newest first",
        parameters=[OpenApiParameter("job", UUID, description="Over this job alone."), *pages.PARAMETERS],
        responses=DisputePage,
    )
    def get(self, request: Request) -> HttpResponse:
        mine = disputes.of(user_of(request))
        if (job := request.query_params.get("job")) is not None:
            mine = mine.filter(job=_uuid(job))
        found, following = pages.page(mine, request)
        return answer(DisputePage(results=tuple(disputes.view(each) for each in found), next=following))

    @extend_schema(
        operation_id="open_dispute",
        tags=["disputes"],
        summary="Contest the verdict on a job; holds the stake",
        request=DisputeRequest,
        parameters=[idempotency.PARAMETER],
        responses={201: DisputeView},
    )
    def post(self, request: Request) -> HttpResponse:
        asked = body(request, DisputeRequest)

        def make() -> DisputeView:
            return disputes.view(disputes.contest(user_of(request), asked.job, asked.reason))

        made = idempotency.once(user_of(request), request, make)
        return HttpResponse(made, status=201, content_type="application/json")


class OneDispute(APIView):
    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="show_dispute", tags=["disputes"], summary="A dispute, with its ruling", responses=DisputeView
    )
    def get(self, request: Request, dispute: UUID) -> HttpResponse:
        found = disputes.find(user_of(request), dispute)
        if found is None:
            raise Http404
        return answer(disputes.view(found))


class Terms(APIView):
    """By the id of a job: the owner of a worker has no other address of it."""

    scopes = needs(GET=Scope.JOBS_READ)

    @extend_schema(
        operation_id="dispute_terms",
        tags=["disputes"],
        summary="What contesting the verdict on a job would take",
        responses=DisputeTerms,
    )
    def get(self, request: Request, job: UUID) -> HttpResponse:
        return answer(disputes.view_terms(disputes.terms(user_of(request), job)))


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None
