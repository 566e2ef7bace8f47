"""What is stored of somebody's jobs, and its deletion."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from labapex_server.lib.errors import Refused
from labapex_server.verification import erasing
from labapex_server.web.views.common import own_job, signed_in, user_of


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def overview(request: HttpRequest) -> HttpResponse:
    """What it takes; posted: the files that no job needs are deleted."""
    if request.method == "POST":
        count = erasing.forget_files(user_of(request))
        messages.success(
            request, f"{count} files deleted." if count else "Every file is needed by a job: none was deleted."
        )
        return redirect("web:storage")
    return render(request, "web/storage.html", {"storage": erasing.storage(user_of(request))})


@signed_in
@require_POST
def delete(request: HttpRequest, job_id: UUID) -> HttpResponse:
    try:
        erasing.ask(own_job(request, job_id))
    except Refused as error:
        messages.error(request, f"{str(error)[:1].upper()}{str(error)[1:]}.")
    return redirect("web:job", job_id=job_id)
