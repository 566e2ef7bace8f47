"""The fleet of a host: how it is, what it earned, and how one more machine joins it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.db.models import Count, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labapex.drivers import NoBuild
from labapex.errors import NotEnoughCredit
from labapex.protocol.api import Scope
from labapex.protocol.hours import Hours
from labapex.trust import fingerprint
from labapex_server.jobs import supply
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, trust
from labapex_server.lib.errors import Conflict, Missing
from labapex_server.marketplace import deposits
from labapex_server.marketplace.matching import torch_for
from labapex_server.marketplace.models import LIVE
from labapex_server.web import reads
from labapex_server.web.forms import DepositForm
from labapex_server.web.views.common import signed_in_to, user_of
from labapex_server.workers import reputation
from labapex_server.workers import services as workers
from labapex_server.workers.models import Worker


def _fleet(request: HttpRequest) -> dict[str, Any]:
    rows = list(
        user_of(request)
        .workers.select_related("deposit")
        .annotate(busy=Count("leases", filter=Q(leases__state__in=LIVE)))
        .order_by("name", "created_at")
    )
    silent_since = clock.after(-settings.LABAPEX.lease_seconds)
    reputations = reputation.of_each(rows)
    earned = reads.earnings([worker.pk for worker in rows], user_of(request))
    held = supply.held() if any(worker.lacks_torch for worker in rows) else supply.NOTHING
    fleet = []
    for worker in rows:
        if worker.banned:
            health = ("bad", "banned")
        elif worker.last_seen_at is None:
            health = ("", "never connected")
        elif worker.last_seen_at < silent_since:
            health = ("warn", "silent")
        elif worker.busy:
            health = ("active", "training")
        else:
            health = ("", "paused") if worker.paused else ("good", "ready")
        fleet.append(
            {
                "worker": worker,
                "health": health,
                "hours": [Hours.model_validate(hours) for hours in worker.hours],
                "earned": earned.get(worker.pk, 0),
                "reputation": reputations[worker.pk],
                "torch": _torch(worker, held),
            }
        )
    return {"fleet": fleet, "total": sum(earned.values())}


def _torch(worker: Worker, held: supply.Held) -> dict[str, str]:
    """Which torch a worker without one gets, or why it gets none."""
    try:
        supplied = torch_for(worker, held)
    except NoBuild as error:
        return {"lacking": str(error)}
    return {} if supplied is None else {"brought": supplied.build.torch}


@signed_in_to(Scope.WORKERS_WRITE, Scope.WORKERS_WRITE)
@require_GET
def listing(request: HttpRequest) -> HttpResponse:
    template = "web/_fleet.html" if request.headers.get("HX-Request") else "web/workers.html"
    return render(request, template, _fleet(request))


@never_cache
@signed_in_to(Scope.WORKERS_WRITE, Scope.WORKERS_WRITE)
@require_POST
def code(request: HttpRequest) -> HttpResponse:
    """A new enrolment code with the commands that use it, shown in this one answer."""
    secret, expires = workers.new_code(user_of(request))
    context = {
        "code": secret,
        "expires": expires,
        "platform": settings.LABAPEX.public_url.rstrip("/"),
        "root": fingerprint(trust.root()),
    }
    return render(request, "web/workers.html", _fleet(request) | context)


@never_cache
@signed_in_to(Scope.WORKERS_WRITE, Scope.WORKERS_WRITE)
@require_http_methods(["GET", "POST"])
def deposit(request: HttpRequest, worker_id: UUID) -> HttpResponse:
    """What is locked on a worker, and what that means; posted: another amount."""
    owner = user_of(request)
    try:
        worker = deposits.own(owner, worker_id)
    except Missing:
        raise Http404 from None
    form = DepositForm(request.POST or None, initial={"amount": ledger.credits_text(worker.deposited)})
    if request.method == "POST" and form.is_valid():
        try:
            changed = deposits.change(owner, worker_id, form.cleaned_data["amount"])
        except (Conflict, NotEnoughCredit) as error:
            form.add_error("amount", f"{str(error)[:1].upper()}{str(error)[1:]}.")
        else:
            amount = ledger.credits_text(changed.deposited)
            messages.success(request, f"{amount} credits are locked on {changed.name}.")
            return redirect("web:workers")
    context = {
        "form": form,
        "worker": worker,
        "bound": deposits.bound(worker),
        "available": ledger.balance(ledger.account_of(owner)).available,
        "days": settings.LABAPEX.evidence_days,
    }
    return render(request, "web/deposit.html", context, status=422 if form.errors else 200)
