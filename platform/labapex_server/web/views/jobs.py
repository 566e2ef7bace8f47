"""Jobs: the list, the form, the live page with its two fragments, the verdict."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from functools import cache
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from pydantic import ValidationError

from labapex.errors import LabApexError, UsageError
from labapex.protocol.api import Scope
from labapex.protocol.canonical import explain
from labapex.protocol.spec import Constraints
from labapex.protocol.states import JobState
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import viewable
from labapex_server.ledger import services as ledger
from labapex_server.lib.config import ROOT
from labapex_server.lib.errors import Refused
from labapex_server.telemetry.charts import Cursor
from labapex_server.telemetry.stints import parts
from labapex_server.telemetry.summaries import curve
from labapex_server.transparency import certificates, starts
from labapex_server.verification import services as verification
from labapex_server.web import commitments as committed
from labapex_server.web import reads, words
from labapex_server.web.forms import MAX_YAML, SubmitForm, read_document
from labapex_server.web.views.common import PAGE, acting_of, number, own_job, signed_in, user_of

BUCKETS = 1500
"""Of a drawing: more than a chart has pixels for on most screens."""


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    """What one looks at first; who may see no jobs looks after the credit."""
    jobless = request.user.is_authenticated and Scope.JOBS_READ not in acting_of(request).scopes
    return redirect("web:billing" if jobless else "web:jobs")


@signed_in
@require_GET
def listing(request: HttpRequest) -> HttpResponse:
    """The newest jobs first; the table alone where the page asks for it again."""
    mine = viewable(Job.objects.filter(owner=user_of(request))).order_by("-created_at", "id")
    page = Paginator(mine, PAGE).get_page(request.GET.get("page"))
    template = "web/_jobs.html" if request.headers.get("HX-Request") else "web/jobs.html"
    return render(request, template, {"page": page, "rows": reads.rows(list(page))})


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    posted = request.method == "POST"
    wanted = {name: request.GET[name] for name in Constraints.model_fields if name in request.GET}
    form = SubmitForm(request.POST, request.FILES) if posted else SubmitForm(initial=wanted)
    if posted and form.is_valid():
        try:
            job = starts.submit(
                user_of(request),
                request=form.upload(user_of(request)),
                idempotency_key=f"web:{form.cleaned_data['key']}",
            )
        except ValidationError as error:
            form.add_error(None, f"{explain(error)}. Rename or leave out this file.")
        except LabApexError as error:
            form.add_error(*_place(error))
        else:
            return redirect("web:job", job_id=job.pk)
    context = {"form": form, "examples": _examples()}
    return render(request, "web/submit.html", context, status=422 if form.errors else 200)


@signed_in
@require_POST
def check(request: HttpRequest) -> HttpResponse:
    """What a labapex.yaml that is being written says, or what is wrong with it: a fragment."""
    text, spec, problem = request.POST.get("document", "")[:MAX_YAML], None, ""
    try:
        spec = read_document(text) if text.strip() else None
    except UsageError as error:
        problem = str(error)
    return render(request, "web/_checked.html", {"spec": spec, "problem": problem})


@cache
def _examples() -> dict[str, str]:
    """The files that come with the platform to start from, by name."""
    found = sorted((ROOT / "examples").glob("*/labapex.yaml"))
    return {path.parent.name: path.read_text() for path in found}


def _place(error: LabApexError) -> tuple[str | None, str]:
    """A service's refusal beside the field that it names."""
    text = str(error)
    field, found, rest = text.partition(": ")
    places = {"budget": "budget", "script": "script", "data": "data_files"}
    if found and field in places:
        return places[field], rest[:1].upper() + rest[1:] + "."
    return ("budget" if text.startswith("the budget") else None), text[:1].upper() + text[1:] + "."


@signed_in
@require_GET
def live(request: HttpRequest, job_id: UUID) -> HttpResponse:
    job = own_job(request, job_id)
    return render(
        request,
        "web/job.html",
        {"job": job, "words": words.for_page(), "arguments": shlex.join(job.job_spec.arguments()), **_timeline(job)},
    )


@never_cache
@signed_in
@require_GET
def timeline(request: HttpRequest, job_id: UUID) -> HttpResponse:
    return render(request, "web/_timeline.html", _timeline(own_job(request, job_id)))


@never_cache
@signed_in
@require_GET
def commitments(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """A page of the run's commitments: a fragment."""
    job = own_job(request, job_id)
    page = Paginator(committed.leaves(job), PAGE).get_page(request.GET.get("page"))
    return render(request, "web/_commitments.html", {"job": job, "page": page, "rows": committed.described(job, page)})


def _timeline(job: Job) -> dict[str, object]:
    signed = reads.signed_verdict(job)
    return {
        "job": job,
        "steps": reads.timeline(job),
        "ended": JobState(job.state).ended,
        "erased": job.erasures.order_by("at"),
        "verdict": signed.verdict if signed else None,
    }


@never_cache
@signed_in
@require_GET
def chart(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """A drawing of the loss from iteration `first` to `stop` in about `buckets` buckets, and the feed's cursor to go on from."""
    job = own_job(request, job_id)
    lease = reads.current_lease(job)
    stop = number(request, "stop", -1)
    drawing = curve(parts(lease) if lease else (), number(request, "first", 0), stop if stop >= 0 else None, BUCKETS)
    cursor = str(Cursor(lease.pk)) if lease else ""
    return JsonResponse({**asdict(drawing), "cursor": cursor})


@never_cache
@signed_in
@require_GET
def clock(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """When iterations were done: {"knots": [[iteration, Unix time], ..]} for iterations past `after`."""
    return JsonResponse({"knots": reads.clock(own_job(request, job_id), after=number(request, "after", -1))})


@signed_in
@require_POST
def stop(request: HttpRequest, job_id: UUID) -> HttpResponse:
    try:
        verification.stop(own_job(request, job_id))
    except Refused as error:
        messages.error(request, str(error))
    return redirect("web:job", job_id=job_id)


@signed_in
@require_POST
def resume(request: HttpRequest, job_id: UUID) -> HttpResponse:
    try:
        verification.go_on(own_job(request, job_id))
    except LabApexError as error:
        messages.error(request, str(error))
    return redirect("web:job", job_id=job_id)


@signed_in
@require_GET
def verdict(request: HttpRequest, job_id: UUID) -> HttpResponse:
    job = own_job(request, job_id)
    signed = reads.signed_verdict(job)
    if signed is None:
        raise Http404("this job has no verdict yet")
    record = certificates.record_of(job)
    context = {
        "job": job,
        "signed": signed,
        "verdict": signed.verdict,
        "money": ledger.outcome(job.hold),
        "shares": reads.shares(signed.verdict),
        "record": record,
        "revoked": certificates.revocation(record) if record else None,
        "dispute": job.disputes.order_by("-created_at").first(),
        "certified": certificates.statement(record) if record else None,
    }
    return render(request, "web/verdict.html", context)


@signed_in
@require_GET
def verdict_json(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """The signed verdict as a file that `labapex verify` and any JSON reader take."""
    signed = reads.signed_verdict(own_job(request, job_id))
    if signed is None:
        raise Http404("this job has no verdict yet")
    response = HttpResponse(signed.model_dump_json(indent=2), content_type="application/json")
    response["Content-Disposition"] = f'attachment; filename="verdict-{job_id}.json"'
    return response
