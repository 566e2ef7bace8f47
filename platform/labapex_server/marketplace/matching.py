"""Which hosts a job may go to, and in words what no host has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from labapex.drivers import NoBuild
from labapex.protocol.contract import Environment
from labapex.protocol.devices import Device
from labapex.protocol.manifest import SuppliedTorch
from labapex.protocol.spec import Constraints, micro_credits
from labapex_server.jobs import supply
from labapex_server.ledger.services import credits_text
from labapex_server.lib import builds
from labapex_server.workers.models import Worker
from labapex_server.workers.speed import first_device

GIGABYTE = 10**9


@dataclass(frozen=True)
class Host:
    """What of a worker a job's constraints look at."""

    device: Device | None  # on which its jobs run
    name: str  # of it: as its last executable found it, else as its agent says
    price_per_hour: int  # micro-credits
    speed: float | None  # GFLOP/s, as shown
    deposit: int  # micro-credits

    @classmethod
    def of(cls, worker: Worker) -> Host:
        device, environment = first_device(worker), environment_of(worker)
        name = environment.device if environment else str(device or "")
        return cls(device, name, worker.price_per_hour, worker.speed, worker.deposited)


@dataclass(frozen=True)
class _Demand:
    met: Callable[[Host], bool]
    unmet: Callable[[Sequence[Host]], str]  # where none of these hosts meets it


def _demands(wanted: Constraints) -> Iterator[_Demand]:
    if (name := wanted.device) is not None:
        yield _Demand(
            lambda host: is_named(host.name, name),
            lambda hosts: f"no host with a device named '{name}'; {_hosts(hosts)} others",
        )
    if least := wanted.min_memory * GIGABYTE:
        yield _Demand(
            lambda host: host.device is not None and (host.device.memory or 0) >= least,
            lambda hosts: f"no host with {wanted.min_memory:g} GB; {_hosts(hosts)} less",
        )
    if wanted.max_price is not None:
        most = int(micro_credits(wanted.max_price))
        yield _Demand(
            lambda host: host.price_per_hour <= most,
            lambda hosts: (
                f"no host for {credits_text(most)} credits an hour;"
                f" the cheapest asks {credits_text(min(host.price_per_hour for host in hosts))}"
            ),
        )
    if wanted.min_speed:
        yield _Demand(
            lambda host: (host.speed or 0.0) >= wanted.min_speed,
            lambda hosts: (
                f"no host that has shown {wanted.min_speed:,.0f} GFLOP/s;"
                f" the fastest has shown {max(host.speed or 0.0 for host in hosts):,.0f}"
            ),
        )
    if wanted.min_deposit is not None:
        locked = int(micro_credits(wanted.min_deposit))
        yield _Demand(
            lambda host: host.deposit >= locked,
            lambda hosts: (
                f"no host with a deposit of {credits_text(locked)} credits;"
                f" the largest is {credits_text(max(host.deposit for host in hosts))}"
            ),
        )


def _hosts(hosts: Sequence[Host]) -> str:
    return "1 host has" if len(hosts) == 1 else f"{len(hosts)} hosts have"


def is_named(device: str, wanted: str | None) -> bool:
    """Whether a device is one that a job asks for; None: it asks for none."""
    return wanted is None or wanted.casefold() in device.casefold()


def meets(host: Host, wanted: Constraints) -> bool:
    return all(demand.met(host) for demand in _demands(wanted))


def lacking(hosts: Sequence[Host], wanted: Constraints) -> str | None:
    """The first demand that none of the hosts meets that meet those before it; None where a host meets them all."""
    if not hosts:
        return "no host is connected"
    for demand in _demands(wanted):
        left = [host for host in hosts if demand.met(host)]
        if not left:
            return demand.unmet(hosts)
        hosts = left
    return None


T = TypeVar("T")


def in_turn(waiting: Sequence[T], owner: Callable[[T], object], priority: Callable[[T], int]) -> Iterator[tuple[T, T]]:
    """(job, whose turn it takes) in the order in which jobs are to be given out; `waiting` is in the order of their turns.

    Each client's jobs take the client's turns by priority, so it moves nobody else's. Where a job gets another's turn, that one
    has to get its."""
    own: dict[object, deque[T]] = {}
    for job in sorted(waiting, key=priority, reverse=True):  # stable: of equal ones the older stays before
        own.setdefault(owner(job), deque()).append(job)
    for turn in waiting:
        yield own[owner(turn)].popleft(), turn


def environment_of(worker: Worker) -> Environment | None:
    """The class of a worker, once an executable has told it."""
    return Environment.model_validate(worker.environment) if worker.environment else None


def torch_for(worker: Worker, held: supply.Held) -> SuppliedTorch | None:
    """The torch that comes with a worker's jobs; None: it has its own. Raises `NoBuild` where none of `held` is for it."""
    return held.fitting(first_device(worker)) if worker.lacks_torch else None


def barred(worker: Worker, held: supply.Held) -> str | None:
    """Why no job may go to a worker, in words: it has no torch and none is held for it, or a build that is a stranger's."""
    try:
        supplied = torch_for(worker, held)
    except NoBuild as error:
        return str(error)
    environment = environment_of(worker)
    if environment is None or (supplied is not None and held.holds(worker.torch_build)):
        return None
    return builds.stranger(environment.torch, worker.torch_build or None, supplied.build if supplied else None)
