"""Disputes: either side of a settled job contests its verdict, and an independent re-execution rules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import F, Q

from labapex.protocol.canonical import digest
from labapex.protocol.ruling import DisputeTerms, DisputeView, Outcome, Side
from labapex.protocol.verdict import Verdict
from labapex_server.disputes import execution
from labapex_server.disputes.models import OPEN, Dispute
from labapex_server.disputes.ruling import Finding, again, judge, rule, signed
from labapex_server.disputes.terms import Terms, contest, contestable, find, of, terms
from labapex_server.lib import clock

__all__ = [
    "again",
    "claim",
    "contest",
    "contestable",
    "find",
    "give_up",
    "go_on",
    "of",
    "release_claim",
    "renew_claim",
    "signed",
    "terms",
    "view",
    "view_terms",
]


def go_on(dispute: Dispute, *, beat: Callable[[], None], seconds: float = math.inf) -> bool:
    """Take turns until enough is known, and rule; no new one after so many seconds: False then. Whatever stops it, the next call
    goes on behind the last turn.

    `beat` may raise to stop. Raises `ChildFailed` where a turn could not take place."""
    known, until = execution.course(dispute), time.monotonic() + seconds
    while (plan := known.next()) is not None:
        if time.monotonic() > until:
            return False
        known = execution.take(known, plan, beat)
    found = judge(known, beat)
    beat()
    rule(dispute, found)
    return True


def give_up(dispute: Dispute, reason: str) -> bool:
    """The platform could not run it again: nothing is said, and the stake goes back. False: it was ruled before."""
    words = f"the platform could not run it again: {reason}"
    return rule(dispute, Finding(Outcome.UNJUDGED, words))


# -- claims: who works on a dispute ------------------------------------------------------------------------------------


def claim(dispute_id: UUID, owner: str, seconds: float) -> Dispute | None:
    """The open dispute, claimed for `owner` for so long; None where it is ruled or someone else works on it."""
    now = clock.now()
    free = Q(claimed_until=None) | Q(claimed_until__lt=now)
    changed = Dispute.objects.filter(free, pk=dispute_id, state=OPEN).update(
        claimed_by=owner, claimed_until=now + timedelta(seconds=seconds), attempts=F("attempts") + 1
    )
    return Dispute.objects.select_related("job", "verdict").get(pk=dispute_id) if changed else None


def renew_claim(dispute_id: UUID, owner: str, seconds: float) -> bool:
    """Prolong a claim. False: it is lost, and so is the work."""
    mine = Dispute.objects.filter(pk=dispute_id, state=OPEN, claimed_by=owner)
    return bool(mine.update(claimed_until=clock.after(seconds)))


def release_claim(dispute_id: UUID, owner: str, *, pause: float = 0, failed: bool = True) -> None:
    """Let others have it, after `pause` seconds. `failed`: an attempt that did not come off counts."""
    until = clock.after(pause) if pause else None
    mine = Dispute.objects.filter(pk=dispute_id, claimed_by=owner)
    mine.update(claimed_by="", claimed_until=until, rung_at=None, **({} if failed else {"attempts": F("attempts") - 1}))


# -- views -------------------------------------------------------------------------------------------------------------


def view_terms(found: Terms) -> DisputeTerms:
    return DisputeTerms(
        job=found.job.pk, side=found.side, stake=found.stake, until=found.until.timestamp(), obstacle=found.obstacle
    )


def view(dispute: Dispute) -> DisputeView:
    """As both parties see it."""
    return DisputeView(
        id=dispute.pk,
        job=dispute.job_id,
        name=dispute.job.name,
        side=Side(dispute.side),
        reason=dispute.reason,
        state=dispute.state,
        contested=digest(Verdict.model_validate(dispute.verdict.document)),
        rule=dispute.verdict.document["deciding_rule"],
        stake=dispute.stake.amount,
        executed=dispute.executed,
        segments=dispute.segments,
        opened_at=dispute.created_at.timestamp(),
        ruled_at=clock.unix(dispute.ruled_at),
        ruling=signed(dispute),
        again=again(dispute),
        url=f"{settings.LABAPEX.public_url.rstrip('/')}/disputes/{dispute.pk}/",
    )
