"""A client stops a job: what was complete at that instant is judged and paid, and nothing else.

The unit is the epoch: one counts if the state at its end was committed to when the job was stopped. The complete ones are
challenged, replayed and judged as a whole run is, as if no more had been ordered; so a host that trains shows what is asked for,
and only where it cannot, or where it was lost before, the states that it handed in while it trained have to do.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction

from labapex.protocol.contract import Contract, Handover
from labapex.protocol.states import Fault, JobState
from labapex_server.jobs import services as jobs
from labapex_server.jobs import states
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import models as telemetry
from labapex_server.telemetry.stints import parts
from labapex_server.verification import evidence, takeover
from labapex_server.verification.models import Challenge, Replay
from labapex_server.workers.models import Finding

_TRIES = 10  # it may advance meanwhile


def stop(job: Job) -> Job:
    """Stop a job for its owner. One that has ended or is stopped already stays as it is.

    Raises `Conflict` once training is complete."""
    for _ in range(_TRIES):
        state = JobState(job.state)
        if state.ended or marketplace.stopped_lease(job) is not None:
            return job
        if state not in states.STOPPABLE:
            raise Conflict("training is complete and its verdict is being made; it can no longer be stopped")
        try:
            with transaction.atomic():
                _stop(job)
        except Conflict:
            job.refresh_from_db()
        else:
            job.refresh_from_db()
            return job
    raise Conflict("the job changes too fast just now; try again")


def _stop(job: Job) -> None:
    lease, epochs = _complete(job)
    if lease is None or epochs <= job.paid_epochs:
        reason = "stopped by its owner"
        if job.hold is not None:
            done = "no further epoch" if job.paid_epochs else "no epoch"
            reason += f" while {done} was complete: nothing is paid, and all that was held is given back"
        if not jobs.advance(job, JobState.CANCELLED, reason=reason, fault=Fault.CLIENT):
            raise Conflict(f"the job is {job.state} by now")
        return
    reason = (
        f"stopped by its owner after {epochs} of {job.job_spec.epochs} epochs were complete; these are verified and paid,"
        " and the rest is given back"
    )
    if job.state == JobState.RUNNING.value and lease.ended_at is None:
        marketplace.stop_training(lease, epochs, reason)
    else:
        marketplace.stop_lost(job, lease, epochs, reason)


def _complete(job: Job) -> tuple[Lease | None, int]:
    """On whose part of the job's run the last complete epoch ended, and how many are complete."""
    if job.state in (JobState.RUNNING.value, JobState.RESUMING.value):
        lease = marketplace.lost_lease(job)  # or the one that trains: the latest
    elif job.handovers:
        lease = Lease.objects.select_related("job", "worker").get(pk=job.handovers[-1]["lease"])
    else:
        return None, 0
    terms = lease.terms
    per_epoch = terms.facts.iterations_per_epoch
    last = parts(lease)[-1].leaves().last()
    epochs = (last.step if last is not None else 0) // per_epoch
    begun = terms.after.step // per_epoch if terms.after is not None else 0
    if job.state in (JobState.QUEUED.value, JobState.LEASED.value):  # what counts of it was handed over
        return lease, int(job.handovers[-1]["leaf"]["step"]) // per_epoch
    if epochs > begun or not terms.handovers:
        return lease, epochs
    return Lease.objects.select_related("job", "worker").get(pk=terms.handovers[-1].lease), begun


# -- where its host is not there to show anything ----------------------------------------------------------------------


def unshown(lease: Lease, reason: str) -> None:
    """The host of a stopped run does not show what it was asked for.

    Who is silent from the beginning is lost; who has seen what was drawn counts as one that has something to hide."""
    seen = Challenge.objects.filter(lease=lease, round__gt=0).exists()
    with transaction.atomic():
        if marketplace.lose(lease, reason, Finding.UNOPENED if seen else Finding.LOST):
            Challenge.objects.filter(lease=lease).delete()
            Replay.objects.filter(lease=lease).delete()


def wind_up(job: Job, *, beat: Callable[[], None]) -> None:
    """Find out how far what lost hosts handed in proves a stopped run, and let that be judged; else the job ends unpaid.

    Raises `ChildFailed` where the replay could not take place: that is no evidence against the host."""
    lost = marketplace.stopped_lease(job)
    while lost is not None:
        why, false = _proven(lost, beat, least=job.paid_epochs)
        if why is None:
            return
        lost = marketplace.disregard(lost, f"{lost.worker.name}: {why}", false=false, least=job.paid_epochs)


def _proven(lost: Lease, beat: Callable[[], None], *, least: int) -> tuple[str | None, bool]:
    """Let a lost host's part be judged as far as states of it are here. Else why not, and whether because it is false."""
    begun = -1 if lost.terms.after is None else lost.terms.after.index
    terms = _shortened(lost)
    if terms is None or terms.counted <= least or not takeover.reproducible(lost):
        return f"{lost.reason}; no state of it is here that proves a further epoch", False
    lost.contract = terms.model_dump(
        mode="json"
    )  # for what reads of it from here on; on record once it is shown to hold
    record = evidence.read(lost, ended=False)
    last = len(terms.leaf_steps()) - 1
    here = [index for index in takeover.states_here(lost) if begun < index <= last]
    if record.chain_problem is not None or (begun < 0 and here[:1] != [0]):
        return f"{lost.reason}; its log or its first state is not here", False
    missing = record.leaves[last] if last not in here else None
    handover = Handover(lease=lost.pk, leaf=record.leaves[last], held=tuple(sorted({*here, last})))
    whole = terms.model_copy(update={"handovers": (*terms.handovers, handover)})
    segments, problem = takeover.look(lost, whole, record, beat, make=missing)
    if problem is not None:
        return f"what it had done until iteration {terms.until} is false: {problem}", True
    reason = (
        f"stopped by its owner; {lost.worker.name} is not there, and {segments} segments of what it had done until"
        f" iteration {terms.until} were trained again and hold; {terms.counted} epochs are verified now"
    )
    marketplace.show_for(lost, whole, reason)
    return None, False


def _shortened(lost: Lease) -> Contract | None:
    """The terms of a stopped run as far as its own host's states go that are here; None where they end no epoch."""
    terms, newest = lost.terms, max(takeover.states_here(lost), default=0)
    at = telemetry.Leaf.objects.filter(log=lost.pk, index=newest).first()
    epochs = min(terms.counted, (at.step if at is not None else 0) // terms.facts.iterations_per_epoch)
    begun = 0 if terms.after is None else terms.after.step
    if epochs * terms.facts.iterations_per_epoch <= begun:
        return None
    return terms.model_copy(update={"stopped": epochs})
