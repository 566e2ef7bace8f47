"""The public log for people: what it holds, how to check it, and whose a model is. No page here asks for a sign-in."""

from __future__ import annotations

import base64
import re
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from labapex.transparency import open_checkpoint, verifier_key
from labapex_server.lib import keys
from labapex_server.lib.errors import Missing, Refused
from labapex_server.transparency import certificates
from labapex_server.transparency import services as log
from labapex_server.web.forms import PublicNameForm
from labapex_server.web.views.common import PAGE, own_job, signed_in, user_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


@never_cache
@require_GET
def overview(request: HttpRequest) -> HttpResponse:
    """The log's head, and its certificates, the newest first; those of one model, or one alone, where a digest is asked for."""
    asked = request.GET.get("model", "").strip().lower()
    wrong = bool(asked) and not _DIGEST.fullmatch(asked)
    found = certificates.look_up("-" if wrong else asked) if asked else certificates.search()
    page = Paginator(found, PAGE).get_page(request.GET.get("page"))
    note = log.head().checkpoint
    public = certificates.public_keys()
    context = {
        "page": page,
        "rows": [
            {
                "record": record,
                "statement": certificates.statement(record),
                "revoked": certificates.revocation(record),
            }
            for record in page
        ],
        "asked": asked[:100],
        "wrong": wrong,
        "checkpoint": note,
        "head": open_checkpoint(note, public.log),
        "verdict_key": base64.b64encode(public.verdict).decode(),
        "log_key": base64.b64encode(public.log).decode(),
        "verifier_key": verifier_key(keys.log_public_key()),
        "form": PublicNameForm(initial={"name": user_of(request).public_name if request.user.is_authenticated else ""}),
    }
    return render(request, "web/transparency.html", context, status=422 if wrong else 200)


@never_cache
@require_GET
def claims(request: HttpRequest, model: str) -> HttpResponse:
    """Everything that decides whose a model is, on one page."""
    try:
        ruled = certificates.claims(model)
    except Missing as error:
        raise Http404(str(error)) from None
    size = log.size()
    context = {
        "model": model,
        "ruled": [{"ruled": each, "inclusion": log.inclusion(each.claim.index, size)} for each in ruled],
        "full": len(ruled) >= certificates.MAX_CLAIMS,
        "checkpoint": log.head(size).checkpoint,
    }
    return render(request, "web/claims.html", context)


@signed_in
@require_POST
def name(request: HttpRequest) -> HttpResponse:
    """The name in one's own certificates from now on."""
    form = PublicNameForm(request.POST)
    if form.is_valid():
        certificates.publish_name(user_of(request), form.cleaned_data["name"])
        messages.success(request, "Your next certificates carry this name. Those in the log stay as they are.")
    else:
        messages.error(request, "A name has at most 80 characters.")
    return redirect("web:transparency")


@signed_in
@require_GET
def certificate_json(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """The certificate with its proofs, as a file that `labapex verify` takes."""
    try:
        bundle = certificates.bundle(own_job(request, job_id))
    except Refused as error:
        raise Http404(str(error)) from None
    response = HttpResponse(bundle.model_dump_json(indent=2) + "\n", content_type="application/json")
    response["Content-Disposition"] = f'attachment; filename="certificate-{job_id}.json"'
    return response
