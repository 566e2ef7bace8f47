"""How a person is told of what happens to their jobs."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labapex_server.alerts import services as alerts
from labapex_server.lib.errors import Refused
from labapex_server.web.forms import ChannelsForm
from labapex_server.web.views.common import signed_in, user_of


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def channels(request: HttpRequest) -> HttpResponse:
    """The form; after a new webhook with its secret, in this one answer."""
    user, secret = user_of(request), None
    kept = alerts.channels_of(user)
    form = ChannelsForm(
        request.POST if request.method == "POST" else None,
        initial={name: getattr(kept, name) for name in ("mail", "webhook", "budget_share")},
    )
    if request.method == "POST" and form.is_valid():
        try:
            secret = alerts.choose(user, **form.cleaned_data)
        except Refused as error:
            form.add_error("webhook", f"{str(error).capitalize()}.")
        else:
            messages.success(request, "Kept.")
            if secret is None:
                return redirect("web:alerts")
    context = {"form": form, "secret": secret, "deliveries": alerts.latest(user), "addresses": alerts.addresses(user)}
    return render(request, "web/alerts.html", context, status=422 if form.errors else 200)


@signed_in
@require_POST
def trial(request: HttpRequest) -> HttpResponse:
    try:
        alerts.try_out(user_of(request))
    except Refused as error:
        messages.error(request, f"{str(error)[:1].upper()}{str(error)[1:]}.")
    else:
        messages.success(request, "A trial is on its way.")
    return redirect("web:alerts")
