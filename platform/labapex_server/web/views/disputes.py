"""Verdicts that are contested: what can be, the form, the re-execution as it goes, the ruling."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from labapex.errors import LabApexError
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute
from labapex_server.lib.errors import Missing
from labapex_server.web.forms import DisputeForm
from labapex_server.web.views.common import PAGE, signed_in, user_of


@never_cache
@signed_in
@require_GET
def listing(request: HttpRequest) -> HttpResponse:
    found = disputes.of(user_of(request)).order_by("-created_at", "pk")
    page = Paginator(found, PAGE).get_page(request.GET.get("page"))
    context = {"page": page, "contestable": disputes.contestable(user_of(request))}
    return render(request, "web/disputes.html", context)


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def contest(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """What it would take; posted: the dispute is open and its stake held."""
    try:
        terms = disputes.terms(user_of(request), job_id)
    except Missing as error:
        raise Http404(str(error)) from None
    form = DisputeForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            dispute = disputes.contest(user_of(request), job_id, form.cleaned_data["reason"])
        except LabApexError as error:
            form.add_error(None, f"{str(error)[:1].upper()}{str(error)[1:]}.")
        else:
            messages.success(request, "The verdict is contested. The run is trained again from its contract.")
            return redirect("web:dispute", dispute_id=dispute.pk)
    context = {"terms": terms, "form": form, "verdict": terms.record.document}
    return render(request, "web/contest.html", context, status=422 if form.errors else 200)


@never_cache
@signed_in
@require_GET
def one(request: HttpRequest, dispute_id: UUID) -> HttpResponse:
    dispute = _mine(request, dispute_id)
    signed = disputes.signed(dispute)
    context = {
        "dispute": dispute,
        "view": disputes.view(dispute),
        "ruling": signed.ruling if signed else None,
        "signed": signed,
        "client": dispute.job.owner_id == user_of(request).pk,
    }
    return render(request, "web/dispute.html", context)


@signed_in
@require_GET
def ruling_json(request: HttpRequest, dispute_id: UUID) -> HttpResponse:
    """The signed ruling as a file."""
    signed = disputes.signed(_mine(request, dispute_id))
    if signed is None:
        raise Http404("this dispute is not ruled yet")
    response = HttpResponse(signed.model_dump_json(indent=2), content_type="application/json")
    response["Content-Disposition"] = f'attachment; filename="ruling-{dispute_id}.json"'
    return response


def _mine(request: HttpRequest, dispute_id: UUID) -> Dispute:
    found = disputes.find(user_of(request), dispute_id)
    if found is None:
        raise Http404("there is no such dispute")
    return found
