"""Why a script that runs may not be accepted all the same: what does not depend on any platform's prices."""

from __future__ import annotations

import math

from labapex.proof.folder import MAX_LEAVES
from labapex.proof.origins import mark
from labapex.protocol.replay import PreflightReport
from labapex.protocol.spec import JobSpec


def objection(spec: JobSpec, report: PreflightReport) -> str | None:
    """What is to be mended in the script or its spec, in the words of a refusal; None where nothing is."""
    if report.problem is not None:
        return report.problem
    if report.facts is None or report.environment is None:
        return "preflight: no training loop was found"
    facts, seconds = report.facts, report.iteration_seconds
    if spec.iterations_per_epoch not in (None, facts.iterations_per_epoch):
        return (
            f"iterations_per_epoch: {spec.iterations_per_epoch} was declared, and the script does"
            f" {facts.iterations_per_epoch}; correct it"
        )
    if spec.require_proven_start and (report.start is None or report.start.unproven):
        found = mark(report.start) if report.start else "its initial weights were not compared"
        return (
            f"require_proven_start: {found}. Initialise them at random, name the certified model that they come from with"
            " start_from, or leave require_proven_start out"
        )
    if not math.isfinite(seconds):
        return "preflight: the time of an iteration could not be measured"
    if (leaves := checkpoints(spec, facts.iterations_per_epoch)) > MAX_LEAVES:
        return f"checkpoint_every: it would make {leaves} checkpoints, and at most {MAX_LEAVES} are kept; raise it"
    return None


def checkpoints(spec: JobSpec, iterations_per_epoch: int) -> int:
    """How many commitments a run makes at most: every k iterations, at each epoch's end, and at the start."""
    return spec.epochs * iterations_per_epoch // spec.checkpoint_every + spec.epochs + 1
