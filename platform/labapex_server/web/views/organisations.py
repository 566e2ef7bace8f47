"""Organisations: making one, its members and invitations, and for whom one acts."""

from __future__ import annotations

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labapex_server.accounts import organisations
from labapex_server.accounts.models import Invitation, Role
from labapex_server.accounts.organisations import Acting, NoMember
from labapex_server.lib import clock
from labapex_server.lib.errors import Missing, Refused
from labapex_server.web.forms import InvitationForm, OrganisationForm
from labapex_server.web.views.common import ACTING, person_of, signed_in_to

anybody = signed_in_to(None, None)


def _of(request: HttpRequest, name: str) -> Acting:
    """The person in this organisation; others' organisations do not exist for them (404)."""
    try:
        return organisations.acting(person_of(request), name)
    except NoMember:
        raise Http404 from None


def _sentence(error: Refused) -> str:
    return f"{str(error)[:1].upper()}{str(error)[1:]}."


@anybody
@require_http_methods(["GET", "POST"])
def listing(request: HttpRequest) -> HttpResponse:
    """Those that one is a member of; posted: a new one."""
    form = OrganisationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = organisations.establish(person_of(request), form.cleaned_data["name"])
        except Refused as error:
            form.add_error("name", _sentence(error))
        else:
            request.session[ACTING] = made.pk
            return redirect("web:organisation", name=made.username)
    context = {"form": form, "memberships": organisations.of(person_of(request))}
    return render(request, "web/organisations.html", context, status=422 if form.errors else 200)


@require_POST
def act(request: HttpRequest) -> HttpResponse:
    """From now on, act for an organisation, or for oneself."""
    if not request.user.is_authenticated:
        return redirect("account_login")
    name = request.POST.get("organisation", "")
    if name:
        request.session[ACTING] = _of(request, name).principal.pk
    else:
        request.session.pop(ACTING, None)
    return redirect("web:index")


@never_cache
@anybody
@require_http_methods(["GET", "POST"])
def members(request: HttpRequest, name: str) -> HttpResponse:
    """Who is a member; posted: an invitation, whose link is in this one answer."""
    by, link = _of(request, name), None
    form = InvitationForm(request.POST or None)
    if request.method == "POST":
        if not by.governs:
            raise PermissionDenied("This is for the organisation's owners.")
        if form.is_valid():
            link = organisations.invite(by, role=form.cleaned_data["role"], email=form.cleaned_data["email"])
            form = InvitationForm()
    context = {
        "by": by,
        "members": by.principal.members.select_related("person").order_by("since"),
        "invitations": Invitation.objects.filter(organisation=by.principal, expires_at__gt=clock.now()),
        "roles": Role.values,
        "meanings": organisations.MEANING,
        "form": form,
        "link": link,
    }
    return render(request, "web/organisation.html", context, status=422 if form.errors else 200)


@anybody
@require_POST
def member(request: HttpRequest, name: str, person_id: int) -> HttpResponse:
    """Another role for a member, or none any more."""
    by, role = _of(request, name), request.POST.get("role", "")
    try:
        if role:
            organisations.appoint(by, person_id, role)
        else:
            organisations.dismiss(by, person_id)
    except NoMember as error:
        raise PermissionDenied(_sentence(error)) from None
    except Refused as error:
        messages.error(request, _sentence(error))
    else:
        if not role and person_id == by.person.pk:
            if request.session.get(ACTING) == by.principal.pk:
                del request.session[ACTING]
            messages.success(request, f"You are not a member of {by.principal} any more.")
            return redirect("web:organisations")
    return redirect("web:organisation", name=name)


@anybody
@require_POST
def withdraw(request: HttpRequest, name: str, invitation_id: int) -> HttpResponse:
    try:
        organisations.withdraw(_of(request, name), invitation_id)
    except NoMember as error:
        raise PermissionDenied(_sentence(error)) from None
    return redirect("web:organisation", name=name)


@never_cache
@anybody
@require_http_methods(["GET", "POST"])
def invitation(request: HttpRequest, secret: str) -> HttpResponse:
    """What one is invited to; posted: joined. To follow the link does nothing yet."""
    try:
        if request.method == "POST":
            joined = organisations.join(person_of(request), secret)
            request.session[ACTING] = joined.organisation_id
            messages.success(request, f"You are a member of {joined.organisation}, and act for it now.")
            return redirect("web:index")
        offered = organisations.invitation(secret)
    except Missing as error:
        return render(request, "web/invitation.html", {"trouble": _sentence(error)}, status=404)
    except Refused as error:
        messages.error(request, _sentence(error))
        return redirect("web:organisations")
    return render(request, "web/invitation.html", {"offered": offered, "meaning": organisations.MEANING[offered.role]})
