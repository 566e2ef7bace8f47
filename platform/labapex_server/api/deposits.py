"""Deposits over REST. Another's worker does not exist for the caller (404)."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.protocol.api import Deposit, DepositChoice, Scope
from labapex.protocol.spec import micro_credits
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer, body, user_of
from labapex_server.marketplace import deposits
from labapex_server.workers.models import Worker


class WorkerDeposit(APIView):
    scopes = needs(GET=Scope.WORKERS_WRITE, PUT=Scope.WORKERS_WRITE, DELETE=Scope.WORKERS_WRITE)

    @extend_schema(
        operation_id="show_deposit", tags=["workers"], summary="What is locked on a worker of yours", responses=Deposit
    )
    def get(self, request: Request, worker: UUID) -> HttpResponse:
        return answer(_view(deposits.own(user_of(request), worker)))

    @extend_schema(
        operation_id="change_deposit",
        tags=["workers"],
        summary="Lock credits on a worker of yours, in place of what is locked",
        request=DepositChoice,
        responses=Deposit,
    )
    def put(self, request: Request, worker: UUID) -> HttpResponse:
        amount = int(micro_credits(body(request, DepositChoice).credits))
        return answer(_view(deposits.change(user_of(request), worker, amount)))

    @extend_schema(
        operation_id="withdraw_deposit",
        tags=["workers"],
        summary="Take back all that is locked on a worker of yours",
        responses=Deposit,
    )
    def delete(self, request: Request, worker: UUID) -> HttpResponse:
        return answer(_view(deposits.change(user_of(request), worker, 0)))


def _view(worker: Worker) -> Deposit:
    return Deposit(worker=worker.pk, amount=worker.deposited, bound=deposits.bound(worker))
