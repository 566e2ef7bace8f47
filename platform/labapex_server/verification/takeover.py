"""A host is lost in the middle of a run: what another one may go on from.

While a host trains it hands in, now and then, a state that it has committed to. When it is lost the platform replays segments
that it draws from what is here, without the host. What holds is handed over at the newest state that is here; what does not
is thrown away, so that an honest host never goes on with another one's lie. The run's final verdict looks at all of it again.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Sum

from labapex.proof.challenge import draw_stint
from labapex.proof.rules import stint_problem
from labapex.protocol.contract import Contract, Handover
from labapex.protocol.records import Leaf
from labapex.protocol.states import LeaseState
from labapex_server.jobs.blobs import Readable
from labapex_server.jobs.models import Job
from labapex_server.lib import store
from labapex_server.lib.errors import Missing, TooLarge
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.telemetry import models as telemetry
from labapex_server.verification import audit, evidence, judgement, openings, replays
from labapex_server.verification.models import OpenedState

SPARE_BYTES = 1 << 20  # by which a state may be larger than twice the preflight's: optimizers make theirs as they go


# -- while a host trains -----------------------------------------------------------------------------------------------


def wanted(lease: Lease) -> int | None:
    """The leaf whose state the host is to hand in now: the first one, then the newest that is due; None where it is here."""
    terms = lease.terms
    if not terms.upload_every or not reproducible(lease):
        return None
    newest = telemetry.Leaf.objects.filter(log=lease.pk).order_by("-index").first()
    if newest is None:
        return None
    here = set(states_here(lease))
    if terms.after is None and 0 not in here:
        return 0
    before_last = newest.index if newest.step < terms.iterations else newest.index - 1
    due = before_last // terms.upload_every * terms.upload_every
    begun = -1 if terms.after is None else terms.after.index
    return due if due > max(begun, *here, -1) and _room(lease) else None


def expected(lease: Lease, index: int) -> Leaf | None:
    """The leaf that a state must fit which a training host hands in; None where it is here. Raises `Missing`, `TooLarge`."""
    terms = lease.terms
    committed = telemetry.Leaf.objects.filter(log=lease.pk, index=index).first()
    if not terms.upload_every or index % terms.upload_every or committed is None:
        raise Missing(f"state {index} was not asked for")
    if OpenedState.objects.filter(lease=lease, index=index).exists():
        return None
    leaf = committed.record
    most = min(settings.LABAPEX.result_limit_bytes, 2 * terms.facts.state_bytes + SPARE_BYTES)
    if leaf.size > most or not _room(lease, leaf.size):
        raise TooLarge(f"a state of {leaf.size} bytes; there is no room for it")
    return leaf


def accept(lease: Lease, index: int, stream: Readable) -> bool:
    """Keep a state that a training host hands in, if it is the one that was committed to. False: it was here already.

    Raises `Refused`; what was sent is then forgotten."""
    leaf = expected(lease, index)
    if leaf is None:
        return False

    openings.keep(lease, leaf, stream)
    return True


def handed_over(lease: Lease, index: int) -> Path:
    """The state with which a lease's run goes on. Raises `Missing` for any other."""
    terms = lease.terms
    if terms.after is None or index != terms.after.index:
        raise Missing("this run does not go on from that state")
    return store.fetch(OpenedState.objects.get(lease=terms.handovers[-1].lease, index=index).path)


# -- when it is lost ---------------------------------------------------------------------------------------------------


def resume(job: Job, *, beat: Callable[[], None]) -> None:
    """Find out from where another host may go on with the run of one that was lost, and let the job wait for it.

    Raises `ChildFailed` where the replay could not take place: that is no evidence against the host."""
    lost = marketplace.lost_lease(job)
    name, terms = lost.worker.name, lost.terms
    record = evidence.read(lost, ended=False)
    handover = _handover(lost, terms, record.leaves)
    begin = 0 if terms.after is None else terms.after.step
    instead = f"goes on from iteration {begin}" if begin else "begins anew"
    if handover is None or record.chain_problem is not None:
        marketplace.begin_anew(
            lost, f"{name}: {lost.reason}; no later state of it is here, the run {instead}", false=False
        )
        return
    segments, problem = look(lost, terms.model_copy(update={"handovers": (*terms.handovers, handover)}), record, beat)
    step = handover.leaf.step
    if problem is None:
        reason = f"{name}: {lost.reason}; {segments} segments of what it had done were trained again and hold,"
        marketplace.hand_over(lost, handover, f"{reason} another worker goes on from iteration {step}")
    else:
        reason = f"what {name} had done until iteration {step} is false, and the run {instead}: {problem}"
        marketplace.begin_anew(lost, reason, false=True)


def _handover(lost: Lease, terms: Contract, leaves: list[Leaf]) -> Handover | None:
    """Where the run of a lost lease could go on; None where no state of it is here that it could go on from."""
    begun, last = -1 if terms.after is None else terms.after.index, len(terms.leaf_steps()) - 1
    held = [index for index in states_here(lost) if begun < index < min(last, len(leaves))]
    if not held or (begun < 0 and held[0] != 0) or held[-1] == 0 or not reproducible(lost):
        return None
    return Handover(lease=lost.pk, leaf=leaves[held[-1]], held=tuple(held))


def look(
    lost: Lease, terms: Contract, record: evidence.Record, beat: Callable[[], None], *, make: Leaf | None = None
) -> tuple[int, str | None]:
    """Replay segments of a lost lease's stint, drawn now. Returns how many, and what is wrong with them.

    `make`: the last leaf, where its state is not here: it is made anew on the way."""
    end = terms.handovers[-1].leaf
    begin = 0 if lost.terms.after is None else lost.terms.after.index
    known = replace(record, leaves=record.leaves[: end.index + 1], losses=record.losses[: end.step])
    known = replace(known, times=record.times[: end.step], leaf_received_at=record.leaf_received_at[: end.index + 1])
    segments = draw_stint(
        known.leaves,
        begin,
        audit_segments=audit.drawn(lost),
        random=random.Random(secrets.token_hex(32)),  # noqa: S311 - seeded by 256 secret bits
    )
    states = openings.states(terms, {terms.origin(segment) for segment in segments})
    report, _ = replays.run(lost, known.leaves, states, segments, compare=(), make=make, beat=beat)
    if report.batches is not None:  # of the whole run
        report = report.model_copy(update={"batches": report.batches[: end.index]})
    seen = judgement.evidence(lost, known, pev_percent=10, replay=report, segments=segments)
    return len(segments), stint_problem(seen)


def reproducible(lease: Lease) -> bool:
    """Whether the platform makes the same bits as the lease's host. Only then a few states and the digests between are
    proof enough: between classes each segment would need both its ends."""
    own: dict[str, Any] = (lease.job.preflight or {}).get("environment") or {}
    threads = {"threads": lease.contract["threads"]}
    return bool(own) and own | threads == (lease.environment or {}) | threads


def states_here(lease: Lease) -> list[int]:
    return list(OpenedState.objects.filter(lease=lease).order_by("index").values_list("index", flat=True))


def _room(lease: Lease, size: int = 0) -> bool:
    """Whether the platform takes in more states of a job."""
    kept = OpenedState.objects.filter(lease__job=lease.job_id, lease__state__in=_KEPT).aggregate(bytes=Sum("size"))[
        "bytes"
    ]
    return bool((kept or 0) + size <= settings.LABAPEX.handover_gb * 1e9)


_KEPT = (LeaseState.RUNNING.value, LeaseState.EXPIRED.value, LeaseState.FAILED.value)
