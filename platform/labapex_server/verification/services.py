"""The last stages of a job: what is opened after the worker has committed itself, the replay, the verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from labapex.proof.doubts import doubts, together
from labapex.protocol.replay import ReplayReport
from labapex.protocol.states import LeaseState
from labapex_server.jobs.models import Job
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace.models import Lease
from labapex_server.verification import evidence, judgement, openings, replays
from labapex_server.verification.challenges import (
    accept_chunks,
    accept_state,
    ask_further,
    challenge,
    expected_chunks,
    expected_state,
    forgive_silence,
    late,
    reject_late,
    shown,
    shown_bytes,
    withhold,
)
from labapex_server.verification.evidence import Record
from labapex_server.verification.models import Challenge, Replay
from labapex_server.verification.openings import is_leafs
from labapex_server.verification.preflight import preflight
from labapex_server.verification.resuming import go_on, resumed_by
from labapex_server.verification.retention import forget as forget_states
from labapex_server.verification.stopping import stop, wind_up
from labapex_server.verification.takeover import accept as keep_state
from labapex_server.verification.takeover import expected as expected_to_keep
from labapex_server.verification.takeover import handed_over, resume
from labapex_server.verification.takeover import wanted as wanted_to_keep
from labapex_server.verification.verdicts import issue, signed, weights

__all__ = [
    "accept_chunks",
    "accept_state",
    "challenge",
    "expected_chunks",
    "expected_state",
    "expected_to_keep",
    "forget_states",
    "forgive_silence",
    "go_on",
    "handed_over",
    "issue",
    "keep_state",
    "late",
    "preflight",
    "reject_late",
    "resume",
    "resumed_by",
    "signed",
    "stop",
    "verify",
    "wanted_to_keep",
    "weights",
    "wind_up",
    "withhold",
]


def finished_lease(job: Job) -> Lease:
    """The lease whose work is judged. Raises `Conflict` where there is none."""
    lease = (
        Lease.objects.select_related("job", "worker__owner").filter(job=job, state=LeaseState.FINISHED.value).first()
    )
    if lease is None:
        raise Conflict(f"job {job.pk} has no finished lease")
    return lease


def verify(lease: Lease, *, beat: Callable[[], None]) -> None:
    """Replay what was opened in a sandboxed child, and judge: issue the verdict, or ask for what is still in doubt.

    What earlier rounds replayed is not replayed again. `beat` may raise to stop. Raises `ChildFailed` where the child could
    not do its work: that is no evidence against the worker.
    """
    record = evidence.read(lease)
    measured, problem = shown(Challenge.objects.select_related("lease").get(lease=lease), record)
    while True:
        found = Challenge.objects.get(lease=lease)
        done = _replayed(lease, found, record, beat)
        seen = judgement.evidence(
            lease,
            record,
            pev_percent=found.pev_percent,
            measured=measured,
            opening_problem=problem,
            replay=ReplayReport.model_validate(done.report),
            segments=found.all_segments,
        )
        states = openings.states(lease.terms, found.all_indices)
        more = doubts(seen, states, ends=found.ends, rounds=found.round - 1, states=len(found.further))
        if not more:
            break
        if ask_further(lease, found, more):
            return
    given = judgement.verdict(
        lease,
        seen,
        drawn=found.audit_segments,
        opened=sorted(states),
        shown_bytes=shown_bytes(found),
        weights=done.weights or None,
    )
    issue(lease, given)


def _replayed(lease: Lease, found: Challenge, record: Record, beat: Callable[[], None]) -> Replay:
    """What all rounds until this one found: an earlier one's report, and what is new replayed now."""
    before = Replay.objects.filter(lease=lease).first()
    if before is None:
        report, made = _replay(lease, record, found.indices, found.segments, found.evaluations, beat, keep=True)
        return Replay.objects.create(lease=lease, report=report.model_dump(mode="json"), weights=made or "")
    known = ReplayReport.model_validate(before.report)
    segments = sorted(set(found.all_segments) - {segment.leaf for segment in known.segments})
    fresh = set(found.wanted) - set(known.mismatched) if found.round > 1 else set()
    wrong = [
        index for index, path in openings.states(lease.terms, fresh).items() if not is_leafs(path, record.leaves[index])
    ]
    report = together(known, ReplayReport(mismatched=tuple(wrong)))
    if segments and not report.mismatched:
        starts = {*segments, *(s + 1 for s in segments if found.ends)}
        report = together(report, _replay(lease, record, starts, segments, (), beat, keep=False)[0])
    before.report = report.model_dump(mode="json")
    before.save()
    return before


def _replay(
    lease: Lease,
    record: Record,
    indices: Iterable[int],
    segments: Collection[int],
    evaluations: Iterable[object],
    beat: Callable[[], None],
    *,
    keep: bool,
) -> tuple[ReplayReport, str | None]:
    """Replay over those of the states that are here. `keep`: in the first round."""
    terms = lease.terms
    states = openings.states(terms, {terms.origin(index) for index in indices})
    compare = [s for s in segments if s + 1 in states]
    return replays.run(
        lease, record.leaves, states, segments, compare=compare, evaluations=evaluations, keep=keep, beat=beat
    )
