"""What a re-execution comes to: by the verdict's own rules, signed, and with all that follows from it in one transaction."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from django.conf import settings
from django.db import transaction

from labapex.errors import NotJudgeable
from labapex.protocol.canonical import digest
from labapex.protocol.replay import ReplayReport
from labapex.protocol.ruling import FalseSegment, Moved, Outcome, Ruling, Side, SignedRuling
from labapex.protocol.verdict import Verdict
from labapex.sealing import sign
from labapex_server.disputes.execution import Course
from labapex_server.disputes.models import OPEN, RULED, Dispute
from labapex_server.ledger import services as ledger
from labapex_server.lib import clock, keys, store
from labapex_server.lib.errors import Conflict
from labapex_server.marketplace import services as marketplace
from labapex_server.marketplace.models import Lease
from labapex_server.transparency import certificates, revocations
from labapex_server.transparency.models import CertificateRecord
from labapex_server.verification import judgement, replays, verdicts

THE_GUARANTEE = "the platform's guarantee"


@dataclass(frozen=True)
class Finding:
    """What the re-execution says. `verdict` would take the contested one's place, if it says otherwise."""

    outcome: Outcome
    because: str
    verdict: Verdict | None = None
    false: FalseSegment | None = None


def judge(known: Course, beat: Callable[[], None]) -> Finding:
    """By the rules of the verdict, over what was run again. Raises `ChildFailed`."""
    dispute = known.dispute
    if not known.turns or (known.whole and known.report.initial_state is None):
        why = known.report.problem or "no two states are here between which something could be run again"
        return Finding(Outcome.UNJUDGED, f"the run could not be executed again here: {why}")
    wrong = known.false_start or known.suspect is not None
    if wrong and not _agreed(known):
        return Finding(
            Outcome.UNJUDGED,
            f"segment {known.suspect or 0} came out in two ways here: this platform does not reproduce the script, and"
            " says nothing of others' work",
        )
    if not wrong and known.whole and known.left:
        return Finding(
            Outcome.UNJUDGED,
            f"{len(known.left)} of {known.count} segments could not be reached: a state to go on from is gone",
        )
    report = known.confirmed if wrong else known.report
    assert report is not None
    asked = {known.suspect} - {None} if wrong else known.asked
    weights = None
    if not wrong and known.whole and dispute.side == Side.WORKER.value:
        weights = _weights(known, beat)
    try:
        given = _verdict(known, report, {leaf for leaf in asked if leaf is not None}, weights)
    except NotJudgeable as error:
        return Finding(Outcome.UNJUDGED, f"not judgeable here: {error}")
    contested = Verdict.model_validate(dispute.verdict.document).verdict
    if given.verdict == "rejected":
        false = _false(known, report) if wrong else None
        outcome = Outcome.UPHELD if contested == "rejected" else Outcome.REVERSED
        return Finding(outcome, _words(false, given), given, false)
    if not known.whole:
        return Finding(
            Outcome.UNJUDGED,
            f"host and platform are of different classes: {len(known.asked)} of {known.count} segments can be judged"
            " here, and nothing false was found in them",
            given,
        )
    outcome = Outcome.REVERSED if contested == "rejected" else Outcome.UPHELD
    words = (
        f"all {known.count} segments were run again, from the state that the seed gives, and are as they were committed"
    )
    return Finding(outcome, words, given)


def rule(dispute: Dispute, found: Finding) -> bool:
    """Put the ruling on record and let everything follow from it, all or nothing. False: it was ruled before."""
    with transaction.atomic():
        locked = Dispute.objects.select_for_update().get(pk=dispute.pk)
        if locked.state != OPEN:
            return False
        _rule(locked, found)
    for turn in dispute.turns.all():
        if turn.kept is not None:
            store.delete(dispute.place(turn.kept))
    shutil.rmtree(dispute.folder, ignore_errors=True)
    return True


def _rule(dispute: Dispute, found: Finding) -> None:
    lease = Lease.objects.select_related("job", "worker").get(pk=dispute.lease_id)
    contested = Verdict.model_validate(dispute.verdict.document)
    seconds = sum(ReplayReport.model_validate(turn.report).seconds for turn in dispute.turns.all())
    reversed_ = found.outcome is Outcome.REVERSED
    charged = _settle_stake(dispute, contested, found, seconds)
    words = f"a dispute was ruled: {found.because}"
    movements: list[marketplace.Movement] = []
    certificate = CertificateRecord.objects.filter(job=dispute.job_id).first()
    if reversed_:
        assert found.verdict is not None
        verdicts.replace(lease, found.verdict)
        if found.verdict.verdict == "verified":
            movements = marketplace.pay_after_all(lease, contested, found.verdict, reason=words)
            paid = sum(each.amount for each in movements if each.payee is not None)
            if lease.terms.stopped is None:
                certificates.certify(lease, found.verdict, paid=paid)
            movements += marketplace.give_back_deposit(lease, contested)
        else:
            movements = marketplace.take_back(lease, found.verdict, reason=words)
    ruling = Ruling(
        dispute=dispute.pk,
        job=dispute.job_id,
        lease=dispute.lease_id,
        side=Side(dispute.side),
        contested=digest(contested),
        outcome=found.outcome,
        because=found.because,
        false=found.false,
        rules=found.verdict.rules if found.verdict else (),
        blamed=found.verdict.blamed if found.verdict else None,
        segments_executed=dispute.executed,
        segments=dispute.segments,
        seconds=seconds,
        worker_environment=found.verdict.worker_environment if found.verdict else None,
        verifier_environment=found.verdict.verifier_environment if found.verdict else None,
        verdict=digest(found.verdict) if reversed_ and found.verdict else None,
        revoked=certificate.digest if certificate is not None and reversed_ else None,
        stake=dispute.stake.amount,
        charged=charged,
        moved=tuple(_moved(each) for each in movements),
        issued_at=clock.now().timestamp(),
    )
    if ruling.revoked is not None:
        revocations.revoke(dispute.job, dispute=dispute.pk, ruling=digest(ruling), reason=found.because)
    Dispute.objects.filter(pk=dispute.pk).update(
        state=RULED,
        outcome=found.outcome.value,
        document=ruling.model_dump(mode="json"),
        key_id=keys.key_id(keys.verdict_public_key()),
        signature=sign(keys.verdict_key(), ruling),
        ruled_at=clock.now(),
        claimed_by="",
        claimed_until=None,
    )


def signed(dispute: Dispute) -> SignedRuling | None:
    """The ruling; None while there is none."""
    if dispute.document is None or dispute.signature is None:
        return None
    return SignedRuling(
        ruling=Ruling.model_validate(dispute.document), key_id=dispute.key_id, signature=bytes(dispute.signature)
    )


def again(dispute: Dispute) -> str | None:
    """The command by which the job's owner runs the false segment again; None where there is none to run."""
    found = signed(dispute)
    false = found.ruling.false if found is not None else None
    if false is None or false.origin is None or false.start == false.stop:
        return None
    return (
        f"labapex pull {dispute.job_id} --proof proof && labapex replay proof"
        f" --from {false.start} --steps {false.stop - false.start}"
    )


def _agreed(known: Course) -> bool:
    """Whether the second look came to the very same as the first: else it is the platform that is not to be trusted here."""
    second = known.confirmed
    if second is None:
        raise Conflict("a false segment is looked at twice before it is ruled")
    if known.false_start:
        return second.initial_state == known.report.initial_state
    first = {segment.leaf: segment for segment in known.report.segments}.get(known.suspect or 0)
    other = {segment.leaf: segment for segment in second.segments}.get(known.suspect or 0)
    if first is None or other is None:
        return first is other
    return (first.state, first.losses, first.batches) == (other.state, other.losses, other.batches)


def _verdict(known: Course, report: ReplayReport, asked: set[int], weights: str | None) -> Verdict:
    drawn = known.count if asked == set(range(known.count)) else 0
    return judgement.verdict(
        known.lease, known.seen(report, asked), drawn=drawn, opened=sorted(known.held), shown_bytes=0, weights=weights
    )


def _weights(known: Course, beat: Callable[[], None]) -> str | None:
    """The digest of the result that the final state gives, which is kept for its owner."""
    final = known.path(known.count)
    if final is None:
        return None
    given = {known.count: final}
    return replays.run(known.lease, known.record.leaves, given, (), compare=(), keep=True, beat=beat)[1]


def _false(known: Course, report: ReplayReport) -> FalseSegment:
    leaves, steps = known.record.leaves, known.terms.leaf_steps()
    if known.false_start:
        return FalseSegment(
            segment=0,
            start=0,
            stop=0,
            agreed=None,
            committed=leaves[0].state,
            recomputed=report.initial_state,
            origin=None,
        )
    suspect = known.suspect
    assert suspect is not None
    recomputed = next((segment.state for segment in report.segments if segment.leaf == suspect), None)
    return FalseSegment(
        segment=suspect,
        start=steps[suspect],
        stop=steps[suspect + 1],
        agreed=leaves[suspect].state,
        committed=leaves[suspect + 1].state,
        recomputed=recomputed,
        origin=max((steps[index] for index in known.held if index <= suspect), default=None),
    )


def _words(false: FalseSegment | None, given: Verdict) -> str:
    if false is None:
        return given.reason
    if false.start == false.stop:
        return f"the committed initial state is not the one that the seed gives; {given.reason}"
    return (
        f"iterations {false.start} to {false.stop - 1} were run again, twice, from the state before them, and came out"
        f" otherwise than they were logged and committed; {given.reason}"
    )


def _settle_stake(dispute: Dispute, contested: Verdict, found: Finding, seconds: float) -> int:
    """The stake pays the re-execution where the opener was wrong, or had not shown what it was asked for; else it goes back.

    Returns micro-credits: never more than the stake."""
    unshown = contested.deciding_rule == "opening"
    pays = found.outcome is Outcome.UPHELD or (found.outcome is Outcome.REVERSED and unshown)
    if not pays:
        ledger.void(dispute.stake)
        return 0
    cost = math.ceil(Fraction(settings.LABAPEX.reference_price_per_hour) * Fraction(seconds) / 3600)
    charged = min(dispute.stake.amount, max(1, cost))
    memo = f"re-execution of {dispute.job.name}, of which {dispute.executed} segments took {seconds:.3g} s"
    ledger.settle(dispute.stake, payments=[(ledger.guarantee(), charged, memo[:200])], rest=ledger.STAKE_REST)
    return charged


def _moved(each: marketplace.Movement) -> Moved:
    names = [THE_GUARANTEE if user is None else user.get_username() for user in (each.payer, each.payee)]
    return Moved(payer=names[0], payee=names[1], amount=each.amount, why=each.why)
