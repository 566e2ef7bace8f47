"""How many segments of a run are drawn at random: fewer of hosts that have shown for long that they are honest.

Fixed only when they are drawn, after the last commitment, so what has come out until then counts. What speaks for a host counts
only if it was known when the lease was granted: nobody lowers the number of a run by what he does while it goes on. The rule is
public, and a host knows its own past; what is kept from it is which segments are drawn, and that is enough (`payoff`).
"""

from __future__ import annotations

from django.conf import settings

from labapex.proof.challenge import RANKED_EPOCHS
from labapex_server.marketplace.models import Lease
from labapex_server.workers import reputation

OVERHEAD = 10  # of a trusted host's run at most one segment in so many is trained again
LEAST = 4  # but for short runs: where half of the segments are false, that is caught with 94 %


def segments(made: int, *, epochs: int, keep_every: int = 1, top_q: int = 1, trusted: bool, full: int) -> int:
    """How many are drawn at random of the segments `made`, unless the client says: `full`, and of a trusted host half as many, or
    fewer where a tenth of the run would be passed.

    First, last and largest updates, which are replayed besides, count among that tenth, and so do the segments by which a replay
    gets to states that were not kept; abrupt changes and doubts, which honest runs rarely have, do not."""
    if not trusted:
        return full
    besides = 2 + top_q * (min(epochs, RANKED_EPOCHS) + 1)
    tenth = made // (OVERHEAD * keep_every)
    return min(full, max(LEAST, min(full // 2, tenth - besides)))


def drawn(lease: Lease) -> int:
    """How many are drawn of a lease's run now: what the client asked for, and more of a host that lied and has not regained
    trust; else as many as the host deserves. Of a run that several hosts made the least trusted counts."""
    spec, contract = lease.job.job_spec, lease.terms
    stints = [stint.lease for stint in contract.stints()]
    hosts = list(Lease.objects.select_related("worker").filter(pk__in=stints))
    if spec.audit_segments and not any(reputation.of(host.worker).fallen for host in hosts):
        return spec.audit_segments
    due = segments(
        len(contract.leaf_steps()) - 1,
        epochs=contract.counted,
        keep_every=contract.keep_every,
        top_q=spec.top_q,
        trusted=all(_trusted(host) for host in hosts),
        full=settings.LABAPEX.audit_segments,
    )
    return max(due, spec.audit_segments)


def _trusted(host: Lease) -> bool:
    """When the lease was granted, and now."""
    then = reputation.of(host.worker, until=host.granted_at)
    return then.trusted and reputation.of(host.worker).trusted
