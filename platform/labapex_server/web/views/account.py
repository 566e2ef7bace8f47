"""The tokens of a person's programs. Signing in, and what secures it, is django-allauth's."""

from __future__ import annotations

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labapex.protocol.api import MEANING
from labapex_server.accounts import devices
from labapex_server.accounts import services as accounts
from labapex_server.accounts.models import DeviceLogin
from labapex_server.accounts.organisations import NoMember
from labapex_server.lib import clock
from labapex_server.web.forms import TokenForm
from labapex_server.web.views.common import acting_of, person_of, shown_again, signed_in_to, too_often


@never_cache
@signed_in_to(None, None)
@require_http_methods(["GET", "POST"])
@shown_again(when=lambda request: request.method == "POST")
def tokens(request: HttpRequest) -> HttpResponse:
    """The list, and a new token's secret: in the answer to the POST and nowhere else. Who asks for one shows once more that it
    is them; their form waits meanwhile."""
    by = acting_of(request)
    form = TokenForm(by.scopes, request.POST or None)
    secret = None
    if request.method == "POST" and form.is_valid():
        asked = form.cleaned_data
        secret = accounts.issue_token(
            by.principal, name=asked["name"], scopes=asked["scopes"], days=asked["days"], by=by
        )
        form = TokenForm(by.scopes)
    listed = accounts.live_tokens(by).select_related("made_by").order_by("-created_at")
    return render(
        request,
        "web/tokens.html",
        {"form": form, "tokens": listed, "secret": secret, "now": clock.now()},
        status=422 if form.errors else 200,
    )


@signed_in_to(None, None)
@require_POST
def revoke(request: HttpRequest, token_id: int) -> HttpResponse:
    if accounts.revoke_token(acting_of(request), token_id=token_id):
        messages.success(request, "The token is revoked: programs that use it are refused from now on.")
    return redirect("web:tokens")


@never_cache
@signed_in_to(None, None)
@require_http_methods(["GET", "POST"])
@shown_again(when=lambda request: request.POST.get("decision") == "allow")
def device(request: HttpRequest) -> HttpResponse:
    """Confirm a program's login (RFC 8628): the code is entered, what it asks for is shown, and only a POST decides."""
    code = (request.POST if request.method == "POST" else request.GET).get("code", "")
    if code and too_often(request):
        return render(request, "429.html", status=429)
    found = devices.waiting(code) if code else None
    if found is None:
        return render(request, "web/device.html", {"code": code[:20]}, status=422 if code else 200)
    decision = request.POST.get("decision", "")
    if decision not in ("allow", "deny"):
        return render(request, "web/device.html", {"code": code[:20], "asked": found, "meanings": _meanings(found)})
    try:
        decided = devices.decide(found, person_of(request), allow=decision == "allow")
    except NoMember as error:
        raise PermissionDenied(str(error)) from None
    if decided:
        done = "The program is logged in; you can close this page." if decision == "allow" else "The login was refused."
        messages.success(request, done)
    return redirect("web:tokens")


def _meanings(login: DeviceLogin) -> list[str]:
    return [MEANING[scope] for scope in login.asked]
