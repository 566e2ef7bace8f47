"""What there is to buy: the hosts that are connected, and what a client may know of them."""

from __future__ import annotations

from django.conf import settings
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from labapex_server.marketplace import offers
from labapex_server.web.forms import OffersForm
from labapex_server.web.views.common import PAGE, signed_in


@signed_in
@require_GET
def listing(request: HttpRequest) -> HttpResponse:
    """The offers that meet what was asked for; the table alone where the page asks for it again."""
    form = OffersForm(request.GET)
    found = offers.find(form.cleaned_data["wanted"], form.cleaned_data["sort"]) if form.is_valid() else None
    context = {
        "form": form,
        "fee": settings.LABAPEX.fee_basis_points / 100,
        "found": found,
        "page": Paginator(found.offers if found else [], PAGE).get_page(request.GET.get("page")),
    }
    template = "web/_offers.html" if request.headers.get("HX-Request") else "web/offers.html"
    return render(request, template, context, status=422 if form.errors else 200)
