"""Granting: which job a worker is promised, under which terms, and who bears the lease's token."""

from __future__ import annotations

import hmac
import secrets
import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Max

from labapex.protocol.contract import Environment, Handover
from labapex.protocol.limits import Limits
from labapex.protocol.manifest import SuppliedTorch
from labapex.protocol.spec import Constraints
from labapex.protocol.states import JobState, LeaseState
from labapex.sealing import sign
from labapex_server.jobs import services as jobs
from labapex_server.jobs import supply
from labapex_server.jobs.models import Job
from labapex_server.lib import clock, tokens, tolerances, trust
from labapex_server.marketplace import executables
from labapex_server.marketplace.classes import another_class, own_class
from labapex_server.marketplace.handover import predecessor
from labapex_server.marketplace.living import alive
from labapex_server.marketplace.matching import Host, barred, environment_of, in_turn, meets, torch_for
from labapex_server.marketplace.models import LIVE, Lease
from labapex_server.marketplace.pricing import estimate, price_per_epoch, work_of
from labapex_server.workers.models import Worker

_CANDIDATES = 20
_DECLINED_SECONDS = 60.0  # for which a worker is not given a job again that it had no room for


class Queue(NamedTuple):
    """What waits for workers: when it has changed, one that found nothing may look again."""

    jobs: int
    newest: datetime | None


def queue() -> Queue:
    return Queue(**Job.objects.filter(state=JobState.QUEUED.value).aggregate(jobs=Count("pk"), newest=Max("turn_at")))


def lease(worker: Worker) -> tuple[Lease, str] | None:
    """Promise the job whose turn it is to this worker: the lease and its bearer token, which is shown this once. That is
    the one that waits longest, or the one that its client has put before it.

    None where nothing waits, or where the worker holds a lease that it has not finished. Jobs on which a worker of its class
    could not be judged are passed over, once an executable has told its class, and so are jobs whose constraints it does not
    meet, jobs whose budget does not cover its price, and jobs that ask for more room than it says it has; those whose run
    another class began, for `handover_wait_seconds`; those that it declined, for a minute; and for good those in which
    something false was found of this worker. A worker whose torch is a stranger's gets none, until it connects anew; one
    without torch gets none where the platform holds no build that runs there.
    """
    if worker.banned or alive(worker).exclude(state=LeaseState.FINISHED.value).exists():
        return None
    told = Worker.objects.select_related("deposit").get(pk=worker.pk)
    held = supply.held() if told.lacks_torch else supply.NOTHING
    if barred(told, held) is not None:
        return None
    torch = torch_for(told, held)
    false = Lease.objects.filter(worker=worker, state=LeaseState.REJECTED.value).values("job_id")
    declined = Lease.objects.filter(
        worker=worker, state=LeaseState.DECLINED.value, ended_at__gt=clock.after(-_DECLINED_SECONDS)
    ).values("job_id")
    waiting = Job.objects.filter(state=JobState.QUEUED.value).exclude(pk__in=false).exclude(pk__in=declined)
    host, environment = Host.of(told), environment_of(told)
    if environment is not None and torch is not None:  # what it had last may have been another build
        environment = environment.model_copy(update={"torch": torch.build.torch})
    room = Limits.model_validate(told.room) if told.room else None
    asked = ("priority", *Constraints.model_fields)
    rows = waiting.order_by("turn_at").values("pk", "owner_id", "turn_at", *(f"spec__{name}" for name in asked))
    turns = in_turn(list(rows), lambda row: row["owner_id"], lambda row: row["spec__priority"] or 0)
    fitting = ((row["pk"], turn) for row, turn in turns if meets(host, _constraints(row)))
    for pk, turn in list(islice(fitting, _CANDIDATES)):
        granted = _grant(Job.objects.get(pk=pk), turn["pk"], told, environment, torch, room)
        if granted is not None:
            return granted
    return None


def _constraints(row: Mapping[str, Any]) -> Constraints:
    found = {name: row[f"spec__{name}"] for name in Constraints.model_fields}
    return Constraints.model_validate({name: value for name, value in found.items() if value is not None})


def _grant(
    job: Job,
    turn: UUID,
    worker: Worker,
    environment: Environment | None,
    torch: SuppliedTorch | None,
    room: Limits | None,
) -> tuple[Lease, str] | None:
    """`turn`: the job whose turn it is. It gets this one's instead."""
    config, now = settings.LABAPEX, clock.now()
    lease_id, token = uuid.uuid4(), secrets.token_urlsafe(32)
    before = predecessor(job, environment)
    if before is not None:
        terms = executables.continued(before, _handovers(job), lease=lease_id)
    else:  # nobody can know a seed before: it decides initial weights, order and all other randomness
        terms = executables.contract(job, lease=lease_id, seed=secrets.token_hex(32))
    if room is not None and terms.limits is not None and terms.limits.beyond(room):
        return None
    if environment is not None:
        there = environment.model_copy(update={"threads": terms.threads})
        if tolerances.gap(there, own_class(job, terms), terms) is not None or another_class(before, there):
            return None
    expires = int(time.time() + config.lease_limit_seconds)
    manifest = executables.manifest(job, terms=terms, worker=worker.pk, torch=torch, expires_at=expires, before=before)
    work = work_of(job, worker.price_per_hour)
    fee = config.fee_basis_points
    if estimate(**work, fee_basis_points=fee) > job.budget:
        return None
    price = price_per_epoch(**work, budget=job.budget, fee_basis_points=fee)
    with transaction.atomic():
        if job.job_spec.min_deposit is not None and not _still_locked(worker):
            return None
        reason = f"given to {worker.name}"
        if terms.after is not None:
            reason += f", to go on from iteration {terms.after.step}"
        handovers = job.handovers if before is not None else []
        if not jobs.advance(job, JobState.LEASED, reason=reason, price_per_epoch=price.host, handovers=handovers):
            return None
        Job.objects.filter(pk=turn).update(turn_at=job.turn_at)
        granted = Lease.objects.create(
            id=lease_id,
            job=job,
            worker=worker,
            seed=terms.seed,
            price_per_epoch=price.host,
            fee_per_epoch=price.fee,
            contract=terms.model_dump(mode="json"),
            manifest=manifest.model_dump(mode="json"),
            manifest_signature=sign(trust.private("manifest", manifest.key), manifest),
            token_digest=tokens.digest(token),
            granted_at=now,
            heartbeat_at=now,
            expires_at=now + timedelta(seconds=config.lease_seconds),
        )
    return granted, token


def _still_locked(worker: Worker) -> bool:
    """Whether the deposit is the one that was looked at. Until the transaction ends nobody changes it."""
    return Worker.objects.select_for_update().get(pk=worker.pk).deposit_id == worker.deposit_id


def _handovers(job: Job) -> tuple[Handover, ...]:
    return tuple(Handover.model_validate(each) for each in job.handovers)


def authenticate(lease_id: UUID, token: str) -> Lease | None:
    """The live lease that this bearer token belongs to."""
    found = Lease.objects.select_related("job", "worker").filter(pk=lease_id, state__in=LIVE).first()
    # Compared also where there is no such lease: the time taken does not tell.
    matches = hmac.compare_digest(found.token_digest if found else "0" * 64, tokens.digest(token))
    return found if found is not None and matches and not found.worker.banned else None
