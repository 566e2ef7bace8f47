"""How fast workers are, as they were made to show: which trial, when, what it proved, and who is slower than he should be."""

from __future__ import annotations

import logging
import secrets
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import numpy
from django.conf import settings
from django.db.models import Q

from labapex.protocol.devices import Device
from labapex.trial import BOUND, MODULUS, entries, operations, rolls
from labapex_server.lib import clock
from labapex_server.workers.models import SpeedTrial, Worker

log = logging.getLogger(__name__)

VECTORS = 12  # a wrong result passes with a probability of 61^-12
RETRY_SECONDS = 3600.0  # after a trial without a figure
FEWEST_PEERS = 3
SLOW = 0.5  # of the median of the others of its name


@dataclass(frozen=True)
class Plan:
    """How much work a trial is: some seconds for an honest device."""

    size: int
    rounds: int


@dataclass(frozen=True)
class Shown:
    """A result, and in how many seconds its digest was here (of all repetitions: `attempts`)."""

    plan: Plan
    trial: UUID
    seed: bytes
    result: bytes
    seconds: float
    attempts: tuple[float, ...]


GPU_PLAN, CPU_PLAN = Plan(8192, 256), Plan(1024, 8)


def plan(devices: Sequence[Device]) -> Plan:
    """What to ask of a host that claims these devices. A CPU could not answer what a GPU is asked in time."""
    return GPU_PLAN if any(each.kind == "cuda" and each.usable for each in devices) else CPU_PLAN


def due(worker: Worker) -> Plan | None:
    """The trial that this worker is to pass before its next job; None: not now."""
    if settings.LABAPEX.trial_hours <= 0:
        return None
    row = Worker.objects.filter(pk=worker.pk).filter(Q(next_trial_at=None) | Q(next_trial_at__lte=clock.now())).first()
    return None if row is None else plan([Device.model_validate(each) for each in row.devices])


def check(shown: Shown) -> str | None:
    """What is wrong with a result; None: it is the chain's, but for a chance of 61^-12. Some seconds for the largest."""
    size = shown.plan.size
    result = numpy.frombuffer(shown.result, dtype=numpy.uint8).reshape(size, size)
    if result.max() >= MODULUS:
        return "the result has entries that no result can have"
    raw = numpy.frombuffer(entries(shown.trial, shown.seed, size), dtype=numpy.uint8)
    a = ((raw % MODULUS).astype(numpy.float32) - BOUND).reshape(size, size)
    drawn = numpy.frombuffer(secrets.token_bytes(size * VECTORS), dtype=numpy.uint8)
    r = ((drawn % MODULUS).astype(numpy.float32) - BOUND).reshape(size, VECTORS)
    v = _reduced(a.T @ r)
    for places in rolls(shown.trial, shown.seed, size, shown.plan.rounds):
        v = _reduced(a @ numpy.roll(v, places, axis=0))
    claimed = _reduced((result.astype(numpy.float32) - BOUND) @ r)
    return None if numpy.array_equal(v, claimed) else "the result is not that of the chain that was asked for"


def _reduced(sums: numpy.ndarray) -> numpy.ndarray:
    """Modulo 61, as -30 to 30; the sums are whole and below 2^24, which float32 holds exactly."""
    return ((sums.astype(numpy.int32) + BOUND) % MODULUS - BOUND).astype(numpy.float32)


def passed(worker: Worker, shown: Shown) -> SpeedTrial:
    """Take down what a checked result proves."""
    gflops = operations(shown.plan.size, shown.plan.rounds) / shown.seconds / 1e9
    return _record(worker, shown.plan, gflops, shown.seconds, shown.attempts, "")


def failed(worker: Worker, asked: Plan, problem: str) -> SpeedTrial:
    """Take down that a trial came to no figure, or to a lie. What was proven before no longer counts."""
    return _record(worker, asked, None, None, (), problem[:500])


def _record(
    worker: Worker, asked: Plan, gflops: float | None, seconds: float | None, attempts: Sequence[float], problem: str
) -> SpeedTrial:
    now = clock.now()
    wait = (
        RETRY_SECONDS
        if gflops is None
        else settings.LABAPEX.trial_hours * 3600 * (0.5 + secrets.randbelow(1000) / 1000)
    )
    Worker.objects.filter(pk=worker.pk).update(speed=gflops, speed_at=now, next_trial_at=now + timedelta(seconds=wait))
    row = SpeedTrial.objects.create(
        worker=worker, at=now, size=asked.size, rounds=asked.rounds, seconds=seconds, attempts=list(attempts), gflops=gflops,
        problem=problem,
    )  # fmt: skip
    if problem:
        log.warning("worker %s: no speed: %s", worker.pk, problem)
    for slow in suspicions():
        if slow.worker.pk == worker.pk:
            log.warning("worker %s: %s", worker.pk, slow)
    return row


@dataclass(frozen=True)
class Suspicion:
    """A worker whose device is much slower than those of the others that claim its name."""

    worker: Worker
    device: str
    speed: float
    usual: float
    peers: int

    def __str__(self) -> str:
        return (
            f"it claims {self.device} and showed {self.speed:,.0f} GFLOP/s; the median of {self.peers} others of that name is"
            f" {self.usual:,.0f}"
        )


def suspicions() -> list[Suspicion]:
    """Who shows less than half of what others of the same name show; it may be heat, a power limit, or another device."""
    named: dict[str, list[Worker]] = defaultdict(list)
    for worker in Worker.objects.exclude(speed=None).order_by("created_at"):
        if (device := first_device(worker)) is not None:
            named[str(device)].append(worker)
    found = []
    for name, workers in named.items():
        for worker in workers:
            others = [other.speed for other in workers if other.pk != worker.pk and other.speed is not None]
            if len(others) >= FEWEST_PEERS and (usual := statistics.median(others)) * SLOW > (worker.speed or 0.0):
                found.append(Suspicion(worker, name, worker.speed or 0.0, usual, len(others)))
    return found


def first_device(worker: Worker) -> Device | None:
    """The device on which a worker's jobs run."""
    devices = [Device.model_validate(each) for each in worker.devices]
    return next((device for device in devices if device.usable), None)
