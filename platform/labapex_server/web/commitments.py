"""Every commitment of a run, one by one, and what was asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import Q, QuerySet

from labapex_server.jobs.models import Job
from labapex_server.telemetry.models import Leaf
from labapex_server.telemetry.stints import parts
from labapex_server.verification.models import Challenge, OpenedState
from labapex_server.web import reads


@dataclass(frozen=True)
class Commitment:
    """A committed state. `words`: what was asked of it, empty where nothing was."""

    leaf: Leaf
    words: str


def leaves(job: Job) -> QuerySet[Leaf]:
    """The commitments of the job's current run that count, in order."""
    lease = reads.current_lease(job)
    of = Q(pk=None)
    for part in parts(lease) if lease else ():
        mine = Q(log=part.lease)
        of |= mine if part.stop is None else mine & Q(step__lte=part.stop)
    return Leaf.objects.filter(of).order_by("index")


def described(job: Job, page: Iterable[Leaf]) -> list[Commitment]:
    """Some of them, with what the challenge asked of each."""
    lease = reads.current_lease(job)
    challenge = Challenge.objects.filter(lease=lease).first() if lease else None
    listed = list(page)
    if challenge is None or challenge.round == 0:
        return [Commitment(leaf, "") for leaf in listed]
    asked, begun, doubted = set(challenge.all_indices), set(challenge.all_segments), set(challenge.further)
    came = OpenedState.objects.filter(lease=lease, index__in=[leaf.index for leaf in listed])
    here = set(came.values_list("index", flat=True)) | lease.terms.held if lease else set()
    found = []
    for leaf in listed:
        words = []
        if leaf.index in asked:
            words.append(
                ("in doubt" if leaf.index in doubted else "drawn")
                + (", opened" if leaf.index in here else ", waited for")
            )
        if leaf.index in begun:
            words.append("trained again from here")
        found.append(Commitment(leaf, "; ".join(words)))
    return found
