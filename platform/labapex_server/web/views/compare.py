"""Runs of one person beside each other."""

from __future__ import annotations

from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from labapex.protocol.states import JobState
from labapex_server.jobs.models import Job
from labapex_server.jobs.view import viewable
from labapex_server.telemetry import charts
from labapex_server.telemetry.stints import parts
from labapex_server.web import comparison, reads
from labapex_server.web.views.common import own_job, signed_in, user_of

POINTS = 1500


@never_cache
@signed_in
@require_GET
def compare(request: HttpRequest) -> HttpResponse:
    """The jobs that the address names, in its order; another's job is none."""
    try:
        named = list(dict.fromkeys(UUID(job) for job in request.GET.getlist("job")[: comparison.MOST]))
    except ValueError:
        raise Http404("there is no such job") from None
    mine = {job.pk: job for job in viewable(Job.objects.filter(owner=user_of(request), pk__in=named))}
    if set(named) - set(mine):
        raise Http404("there is no such job")
    chosen = [mine[job] for job in named]
    context = {
        "runs": [_run(job) for job in chosen],
        "table": comparison.table(chosen) if chosen else [],
        "most": comparison.MOST,
    }
    return render(request, "web/compare.html", context)


def _run(job: Job) -> dict[str, object]:
    addresses = {name: reverse(f"web:{name}", args=[job.pk]) for name in ("chart", "clock", "series")}
    return {
        "name": job.name,
        "page": reverse("web:job", args=[job.pk]),
        "ended": JobState(job.state).ended,
        **addresses,
    }


@never_cache
@signed_in
@require_GET
def series(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """What the job's script tells itself: {name: [[iteration, ..], [value, ..]]}, each thinned out to what a chart can show."""
    lease = reads.current_lease(own_job(request, job_id))
    told = charts.series(parts(lease)) if lease else ()
    strides = {each.name: max(1, -(-len(each.iterations) // POINTS)) for each in told}
    return JsonResponse(
        {each.name: [each.iterations[:: strides[each.name]], each.values[:: strides[each.name]]] for each in told}
    )
