"""One turn of work on one dispute: claim its row, go on with the re-execution, rule. As `stages` does with jobs."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from uuid import UUID

from django.conf import settings

from labapex.errors import LabApexError, SandboxUnavailable
from labapex_server.disputes import services as disputes
from labapex_server.disputes.models import Dispute
from labapex_server.lib import logs
from labapex_server.lib.store import StoreSilent
from labapex_server.pipeline import tally
from labapex_server.pipeline.stages import ClaimLost
from labapex_server.pipeline.tally import Outcome

log = logging.getLogger(__name__)


def work(dispute_id: UUID) -> bool:
    """Go on with a dispute if nobody else does. False: there was nothing to do.

    After too many attempts at one turn it is ruled that nothing can be said."""
    owner = f"{socket.gethostname()[:40]}:{os.getpid()}:{secrets.token_hex(8)}"
    found = disputes.claim(dispute_id, owner, settings.LABAPEX.claim_seconds)
    if found is None:
        return False
    with logs.on(task="dispute", job=found.job_id):
        tally.counted("dispute", lambda: _attempt(found, owner))
    return True


def _attempt(dispute: Dispute, owner: str) -> Outcome:
    most, attempts = settings.LABAPEX.max_attempts, dispute.attempts

    def beat() -> None:
        if not disputes.renew_claim(dispute.pk, owner, settings.LABAPEX.claim_seconds):
            raise ClaimLost(f"dispute {dispute.pk} is ruled, or in other hands")

    if attempts > most:
        disputes.give_up(dispute, f"{attempts - 1} attempts at one turn failed or were stopped")
        return Outcome.GIVEN_UP
    try:
        if not disputes.go_on(dispute, beat=beat, seconds=settings.LABAPEX.replay_seconds):
            disputes.release_claim(
                dispute.pk, owner, failed=False
            )  # others have their turn, and a task is no longer than it may
    except ClaimLost as lost:
        log.info("%s", lost)
        return Outcome.LOST
    except (SandboxUnavailable, StoreSilent) as error:  # which passes or is mended, and then it goes on
        log.error("dispute %s: %s", dispute.pk, error)
        disputes.release_claim(dispute.pk, owner, pause=60, failed=False)
        return Outcome.FAILED
    except Exception as error:
        log.exception("dispute %s, attempt %d", dispute.pk, attempts)
        if attempts >= most and isinstance(error, LabApexError):
            disputes.give_up(dispute, str(error))
            return Outcome.GIVEN_UP
        disputes.release_claim(dispute.pk, owner, pause=min(300, 2**attempts))
        return Outcome.FAILED
    return Outcome.DONE
