"""What a person has, what is promised, and where each credit went."""

from __future__ import annotations

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from labapex.protocol.api import Scope
from labapex.protocol.states import END_STATES
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.ledger import statements
from labapex_server.lib.errors import Refused
from labapex_server.web.views.common import PAGE, signed_in_to, user_of


@signed_in_to(Scope.BILLING_READ, Scope.BILLING_READ)
@require_GET
def overview(request: HttpRequest) -> HttpResponse:
    account = ledger.account_of(user_of(request))
    transfers = statements.of(account).select_related("debit__user", "credit__user").order_by("-created_at", "id")
    page = Paginator(transfers, PAGE).get_page(request.GET.get("page"))
    mine = set(
        Job.objects.filter(owner=user_of(request), pk__in=[t.job for t in page if t.job]).values_list("pk", flat=True)
    )
    rows = [{"transfer": t, "incoming": t.credit_id == account.pk, "linked": t.job in mine} for t in page]
    ended = (
        Job.objects.filter(owner=user_of(request), state__in=END_STATES, hold__isnull=False)
        .select_related("hold")
        .order_by("-created_at")[:PAGE]
    )
    receipts = [{"job": job, "outcome": ledger.outcome(job.hold)} for job in ended]
    context = {
        "balance": ledger.balance(account),
        "spent": ledger.spent(account),
        "page": page,
        "rows": rows,
        "receipts": receipts,
        "months": statements.months(account),
    }
    return render(request, "web/billing.html", context)


@signed_in_to(Scope.BILLING_READ, Scope.BILLING_READ)
@require_GET
def statement(request: HttpRequest) -> HttpResponse:
    """The rows of one month as a file for a spreadsheet."""
    try:
        month = statements.month(request.GET.get("month"))
    except Refused as error:
        return HttpResponse(f"{error}\n", status=400, content_type="text/plain; charset=utf-8")
    lines = statements.as_csv(ledger.account_of(user_of(request)), month)
    response = HttpResponse("".join(lines), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="labapex-{month}.csv"'
    return response
