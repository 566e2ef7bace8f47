"""What one's account did in a month, as JSON by pages and as one file of CSV."""

from __future__ import annotations

from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.protocol.api import Scope, Statement
from labapex_server.api import pages
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer, user_of
from labapex_server.ledger import services as ledger
from labapex_server.ledger import statements

_MONTH = OpenApiParameter(
    "month",
    {"type": "string", "pattern": "^[1-9][0-9]{3}-(0[1-9]|1[0-2])$"},
    description="UTC; default: the present one.",
)


class AccountStatement(APIView):
    scopes = needs(GET=Scope.BILLING_READ)

    @extend_schema(
        operation_id="statement",
        tags=["account"],
        summary="Your account in a month, its entries the newest first",
        parameters=[_MONTH, *pages.PARAMETERS],
        responses=Statement,
    )
    def get(self, request: Request) -> HttpResponse:
        account, month = ledger.account_of(user_of(request)), statements.month(request.query_params.get("month"))
        found, following = pages.page(statements.rows(account, month), request)
        return answer(
            Statement(
                month=str(month),
                opening=statements.balance_before(account, month.begin),
                closing=statements.balance_before(account, month.end),
                results=tuple(statements.entry(account, row) for row in found),
                next=following,
            )
        )


class StatementFile(APIView):
    scopes = needs(GET=Scope.BILLING_READ)

    @extend_schema(
        operation_id="statement_csv",
        tags=["account"],
        summary="The same as CSV, oldest first, whole",
        parameters=[_MONTH],
        responses={(200, "text/csv"): str},
    )
    def get(self, request: Request) -> HttpResponse:
        month = statements.month(request.query_params.get("month"))
        lines = statements.as_csv(ledger.account_of(user_of(request)), month)
        return HttpResponse("".join(lines), content_type="text/csv; charset=utf-8")
