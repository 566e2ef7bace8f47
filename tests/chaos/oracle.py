"""What the books must say after a play, read from the database itself: `python oracle.py ACKNOWLEDGED.json`, JSON on stdout.

Each acknowledgement that left the platform is of a frame that is stored, once, with just that hash; each log is one unbroken
chain; no job is between two states; and each micro-credit is where it belongs.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID


def judge(acknowledged: dict[tuple[UUID, int], bytes]) -> dict[str, Any]:
    """What is wrong, by kind; empty lists where nothing is. Every host of the play was honest."""
    from django.db.models import Sum

    from labapex.protocol.frames import frame_hash, genesis
    from labapex.protocol.states import JobState, LeaseState
    from labapex_server.jobs.models import Job
    from labapex_server.ledger.audit import audit
    from labapex_server.ledger.models import ISSUER, POSTED, Transfer
    from labapex_server.ledger.services import outcome
    from labapex_server.marketplace.models import LIVE, Lease
    from labapex_server.telemetry.models import Frame, Log

    wrong: dict[str, list[str]] = {"records": [], "acknowledged": [], "states": [], "money": []}
    records = frames = 0
    for log in Log.objects.select_related("lease"):
        head, following, start = genesis(log.pk), 0, log.lease.terms.after
        position = 0 if start is None else start.step
        for frame in Frame.objects.filter(log=log).order_by("seq", "pk").iterator():
            fields = {"lease": log.pk, "seq": frame.seq, "first": frame.first, "n": frame.n}
            own = frame_hash(**fields, prev=bytes(frame.prev), payload=bytes(frame.payload))
            if (
                (frame.seq, frame.first) != (following, position)
                or bytes(frame.prev) != head
                or own != bytes(frame.hash)
            ):
                wrong["records"].append(
                    f"frame {frame.seq} of {log.pk} where {following} with iteration {position} is due"
                )
            if (told := acknowledged.pop((log.pk, frame.seq), own)) != own:
                wrong["acknowledged"].append(f"frame {frame.seq} of {log.pk} is stored as another than {told.hex()}")
            head, following, position = own, frame.seq + 1, position + frame.n
            records, frames = records + frame.n, frames + 1
        if (log.seq, log.next, bytes(log.head)) != (following, position, head):
            wrong["records"].append(f"the log {log.pk} says {log.seq} frames, {log.next} records")
    wrong["acknowledged"] += [f"frame {seq} of {lease} is not stored" for lease, seq in acknowledged]
    ends: Counter[str] = Counter()
    for job in Job.objects.select_related("hold"):
        state, money = JobState(job.state), outcome(job.hold)
        ends[state.value] += 1
        if state not in (JobState.VERIFIED, JobState.CANCELLED):
            wrong["states"].append(f"job {job.pk} is {state.value}: {job.reason}")
        if money.open or money.held != money.paid + money.refunded or (not money.paid and state is JobState.VERIFIED):
            wrong["money"].append(f"job {job.pk} is {state.value}: {money}")
        if state is JobState.VERIFIED:
            kept = Log.objects.get(lease__job=job, lease__state=LeaseState.SETTLED.value)
            if not kept.finished or kept.next != kept.lease.terms.iterations:
                wrong["records"].append(f"job {job.pk} is verified with {kept.next} records")
    for live in Lease.objects.filter(state__in=LIVE):
        wrong["states"].append(f"lease {live.pk} is {live.state}")
    books = audit()
    issued = Transfer.objects.filter(debit__kind=ISSUER, status=POSTED).aggregate(n=Sum("amount"))["n"]
    if books.escrow or books.overdrawn or books.held or books.circulating != issued:
        wrong["money"].append(f"{books}, issued {issued}")
    return {"wrong": wrong, "jobs": ends, "logs": Log.objects.count(), "frames": frames, "records": records}


def main() -> None:
    import django

    django.setup()
    told = json.loads(Path(sys.argv[1]).read_text())
    acknowledged = {(UUID(lease), seq): bytes.fromhex(head) for lease, seq, head in told}
    print(json.dumps(judge(acknowledged)))


if __name__ == "__main__":
    main()
