"""Before money is held: does the script run, does it reproduce itself, and what will it cost?"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from labapex.errors import MalformedInput, NotEnoughCredit
from labapex.proof.objections import objection
from labapex.protocol.replay import PreflightReport, PreflightRequest
from labapex.protocol.states import Fault, JobState
from labapex_server.jobs import blobs, limits, packages
from labapex_server.jobs import services as jobs
from labapex_server.jobs.models import Job
from labapex_server.ledger import services as ledger
from labapex_server.lib import childprocess
from labapex_server.marketplace.pricing import estimate

_MAX_REASON = 20_000


def preflight(job: Job, *, beat: Callable[[], None]) -> None:
    """Run the preflight of a submitted job and move it on. `beat` is called now and then and may raise to stop."""
    try:
        packages.lock(job, beat)
        report, problem = _run(job, beat)
    except packages.NotToBeHad as error:
        report, problem = None, f"requirements: {error}"
    problem = problem or _objection(job, report)
    if problem or report is None:
        jobs.advance(job, JobState.REFUSED, reason=(problem or "")[-_MAX_REASON:], fault=Fault.CLIENT)
        return
    found: dict[str, Any] = {
        "facts": report.facts.model_dump(mode="json") if report.facts else None,
        "preflight": report.model_dump(mode="json", exclude={"console"}),
        "iteration_seconds": report.iteration_seconds,
    }
    try:
        with transaction.atomic():
            account = ledger.account_of(job.owner)
            held = ledger.hold(account, amount=job.budget, job=job.pk, memo=f"budget of {job.name}")
            if not jobs.advance(job, JobState.PACKAGING, reason="being sealed", hold=held, **found):
                transaction.set_rollback(True)  # stopped meanwhile: nothing is held
    except NotEnoughCredit as error:
        jobs.advance(job, JobState.REFUSED, reason=str(error), fault=Fault.CLIENT, **found)


def fill(job: Job, folder: Path, beat: Callable[[], None]) -> None:
    """The job's files in plaintext, below a private folder that does not exist yet."""
    folder.mkdir(mode=0o700)
    for part, blob in jobs.parts(job):
        target = folder / part.path
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        blobs.open_into(blob, target)
        beat()


def _run(job: Job, beat: Callable[[], None]) -> tuple[PreflightReport | None, str | None]:
    spec = job.job_spec
    request = PreflightRequest(
        script=spec.script,
        args=tuple(spec.arguments()),
        epochs=spec.epochs,
        iterations_per_epoch=spec.iterations_per_epoch,
        checkpoint_every=spec.checkpoint_every,
        threads=min(spec.threads, os.cpu_count() or 1),
        seed=secrets.token_hex(32),
        parents=job.origins,
    )
    with childprocess.private_folder("preflight") as folder, packages.environment(job) as environment:
        fill(job, folder / "work", beat)
        (folder / "states").mkdir(mode=0o700)
        try:
            report = childprocess.run(
                "preflight",
                folder,
                request=request,
                report=PreflightReport,
                threads=request.threads,
                seconds=settings.LABAPEX.preflight_seconds,
                beat=beat,
                packages=environment,
                limits=limits.of_script(spec),
            )
        except childprocess.ChildExceeded as error:
            return None, str(error)
        except childprocess.ChildFailed as error:  # the script ended or hung the process that was to watch it
            return None, "\n".join(filter(None, (f"preflight: {error}", error.said)))
        except MalformedInput as error:
            return None, f"preflight: the script left no usable report: {error}"
    return report, report.problem


def _objection(job: Job, report: PreflightReport | None) -> str | None:
    """Why a script that runs is refused all the same."""
    spec = job.job_spec
    if report is None or report.facts is None:
        return "preflight: no training loop was found"
    if problem := objection(spec, report):
        return problem
    facts, seconds = report.facts, report.iteration_seconds
    cost = estimate(
        price_per_hour=settings.LABAPEX.reference_price_per_hour,
        iteration_seconds=seconds,
        iterations_per_epoch=facts.iterations_per_epoch,
        epochs=spec.epochs,
        fee_basis_points=settings.LABAPEX.fee_basis_points,
    )
    if cost > job.budget:
        return (
            f"budget too small: {spec.epochs} epochs of {facts.iterations_per_epoch} iterations of {seconds:.3g} s come"
            f" to about {ledger.credits_text(cost)} credits; the budget is {ledger.credits_text(job.budget)}: raise it"
        )
    return None
