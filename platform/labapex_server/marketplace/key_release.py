"""The keys of a lease: to which executable they are given, once, and to which not."""

from __future__ import annotations

import hmac
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction

from labapex.proof.tolerance import described
from labapex.protocol.contract import TorchBuild
from labapex.protocol.frames import KeyRequest
from labapex.protocol.manifest import Manifest, ReleasedKeys
from labapex.protocol.states import JobState, LeaseState
from labapex.sealing import new_key, seal_release
from labapex_server.jobs import services as jobs
from labapex_server.lib import builds, clock, keys, tolerances
from labapex_server.lib.errors import Conflict, OtherClass, UnknownBuild
from labapex_server.marketplace.changes import change
from labapex_server.marketplace.classes import another_class, own_class
from labapex_server.marketplace.ending import send_back
from labapex_server.marketplace.matching import is_named
from labapex_server.marketplace.models import Lease
from labapex_server.workers.models import Worker


def release_keys(lease: Lease, *, request: KeyRequest) -> bytes:
    """Content key and run key, sealed to the executable's key: what `KeyRelease` carries.

    Given out once. The same executable that asks again gets the same sealed bytes, so that a lost reply costs nothing.
    Raises `Conflict` for another executable or a lease that is over, `OtherClass` where the executable runs on a class of
    hosts whose work could not be judged here, and `UnknownBuild` where its torch is none of those on record: then the lease
    is over, and the job waits for another worker. So it is, with `Conflict`, where the device is not such as the job asks for.
    """
    terms = lease.terms
    own = own_class(lease.job, terms)
    why = tolerances.gap(request.environment, own, terms)
    before = Lease.objects.get(pk=terms.handovers[-1].lease) if terms.handovers else None
    waits = "a worker of the class that began this run"
    if why is None and another_class(before, request.environment) and _decline(lease, request, waits):
        raise OtherClass(
            "this job goes on with the run of another class of hosts, bit for bit; it waits for such a one"
        )
    waits = f"a worker of a class that this platform can judge; {lease.worker.name} is of another"
    if why is not None and _decline(lease, request, f"{waits}: {described(request.environment)}"):
        raise OtherClass(
            f"this platform could not judge what is trained on {described(request.environment)}: it is of another class,"
            f" {described(own)}, and {why}; the job goes to another worker"
        )
    wanted, found = lease.job.job_spec.device, request.environment.device
    waits = f"a worker with a device named '{wanted}'; the one of {lease.worker.name} turned out to be {found}"
    if not is_named(found, wanted) and _decline(lease, request, waits):
        raise Conflict(f"the job asks for a device named '{wanted}', and its executable found {found}")
    supplied = _supplied(lease)
    stranger = builds.stranger(request.environment.torch, request.torch_build, supplied)
    waits = f"a worker with a build of torch that is on record; {lease.worker.name} has another"
    if stranger is not None and _decline(lease, request, f"{waits}: {stranger}"):
        anew = "delete the worker's environments/" if supplied else "install torch anew from its usual source"
        raise UnknownBuild(f"{stranger}; {anew}, and restart the daemon")
    return _release(lease, request)


def _supplied(lease: Lease) -> TorchBuild | None:
    """The build of torch that its host was given with it."""
    torch = Manifest.model_validate(lease.manifest).torch
    return None if torch is None else torch.build


@transaction.atomic
def _decline(lease: Lease, request: KeyRequest, waits: str) -> bool:
    """End a lease whose host is not one for its job, before anything was trained. False: the lease was past that."""
    if not send_back(lease, LeaseState.FAILED, f"no keys: the job waits for {waits}", waits):
        return False
    _remember(lease, request)
    return True


def _remember(lease: Lease, request: KeyRequest) -> None:
    """What an executable told of its worker's host."""
    Worker.objects.filter(pk=lease.worker_id).update(
        environment=request.environment.model_dump(mode="json"), torch_build=request.torch_build or ""
    )


@transaction.atomic
def _release(lease: Lease, request: KeyRequest) -> bytes:
    current = Lease.objects.select_for_update().select_related("job", "worker").get(pk=lease.pk)
    if current.state not in (LeaseState.GRANTED.value, LeaseState.RUNNING.value):
        raise Conflict("this lease is over; delete its files")
    if current.sealed_keys is not None:
        same = hmac.compare_digest(bytes(current.hpke_key or b""), request.hpke_key)
        if same and hmac.compare_digest(bytes(current.signing_key or b""), request.signing_key):
            return bytes(current.sealed_keys)
        raise Conflict("the keys of this lease were given to another process already; ask for a new lease")
    job, now = current.job, clock.now()
    run = new_key()
    released = ReleasedKeys(content_key=jobs.content_key(job), run_key=run)
    sealed = seal_release(request.hpke_key, manifest=Manifest.model_validate(current.manifest), keys=released)
    environment = request.environment.model_dump(mode="json")
    change(
        current,
        LeaseState.GRANTED,
        LeaseState.RUNNING,
        key_released_at=now,
        heartbeat_at=now,
        expires_at=now + timedelta(seconds=settings.LABAPEX.lease_seconds),
        hpke_key=request.hpke_key,
        signing_key=request.signing_key,
        sealed_keys=sealed,
        wrapped_run_key=keys.wrap(run, run_purpose(current.pk)),
        environment=environment,
    )
    _remember(current, request)
    reason = f"training, on {builds.described(request.environment.torch, request.torch_build, _supplied(current))}"
    if not jobs.advance(job, JobState.RUNNING, reason=reason, started_at=job.started_at or now):
        raise Conflict("the job was stopped; delete its files")
    return sealed


def run_key(lease: Lease) -> bytes:
    """The key of the lease's log. Raises `Conflict` where none was given out."""
    if lease.wrapped_run_key is None:
        raise Conflict("the keys of this lease were not given out yet")
    return keys.unwrap(lease.wrapped_run_key, run_purpose(lease.pk))


def run_purpose(lease_id: UUID) -> str:
    return f"run:{lease_id}"
