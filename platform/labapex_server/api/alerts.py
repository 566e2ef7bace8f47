"""How an account is told of its jobs' alerts."""

from __future__ import annotations

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.protocol.api import AlertChannels, AlertChoice, Scope
from labapex_server.accounts.models import User
from labapex_server.alerts import services as alerts
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer, body, user_of


class Alerts(APIView):
    scopes = needs(GET=Scope.JOBS_READ, PUT=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="alert_channels", tags=["alerts"], summary="How you are told of alerts", responses=AlertChannels
    )
    def get(self, request: Request) -> HttpResponse:
        return answer(_view(user_of(request)))

    @extend_schema(
        operation_id="choose_alert_channels",
        tags=["alerts"],
        summary="Choose how you are told of alerts; a new webhook gets its secret in this one answer",
        request=AlertChoice,
        responses=AlertChannels,
    )
    def put(self, request: Request) -> HttpResponse:
        user, choice = user_of(request), body(request, AlertChoice)
        secret = alerts.choose(user, mail=choice.mail, webhook=choice.webhook or "", budget_share=choice.budget_share)
        return answer(_view(user, secret))


class AlertTrial(APIView):
    scopes = needs(POST=Scope.JOBS_WRITE)

    @extend_schema(
        operation_id="try_alert_channels",
        tags=["alerts"],
        summary="Send a trial to your channels",
        request=None,
        responses={202: OpenApiResponse(description="It is on its way.")},
    )
    def post(self, request: Request) -> HttpResponse:
        alerts.try_out(user_of(request))
        return HttpResponse(status=202)


def _view(user: User, secret: str | None = None) -> AlertChannels:
    channels = alerts.channels_of(user)
    return AlertChannels(
        mail=channels.mail,
        webhook=channels.webhook or None,
        budget_share=channels.budget_share,
        address=", ".join(alerts.addresses(user)) or None,
        secret=secret,
    )
