"""The re-execution: the whole run again from its contract, in turns, from one state that is known to be true to the next.

A turn starts the sandboxed child with one state that was committed to, and passes segments from there; each must end in the state
that its leaf commits to. By induction from the initial state, which follows from the seed, that is the whole run again; and from
a state that was opened long ago a turn need not wait for what lies before it. So what the contested verdict found false is looked
at first, the first false segment ends the search, and it is looked at once more, in a process of its own, before it decides.

Rows say how far it has come, files hold the state to go on from: a platform that was killed repeats one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F

from labapex.proof.doubts import together
from labapex.proof.evidence import Evidence
from labapex.proof.rules import first_false
from labapex.protocol.contract import Contract
from labapex.protocol.replay import ReplayReport
from labapex.protocol.ruling import Side
from labapex_server.disputes.models import Dispute, Turn
from labapex_server.lib import clock, store
from labapex_server.marketplace.models import Lease
from labapex_server.verification import challenges, evidence, judgement, openings, replays, takeover
from labapex_server.verification.models import Challenge, Replay

Beat = Callable[[], None]


@dataclass(frozen=True)
class Plan:
    """One turn: segments `start` .. `stop` - 1 from the states `given`; that of leaf `keep` is kept if it is the committed."""

    start: int
    stop: int
    segments: tuple[int, ...]
    given: dict[int, Path]
    compare: tuple[int, ...] = ()
    keep: int | None = None
    confirms: bool = False


@dataclass
class Course:
    """How far a dispute's re-execution has come, and what it found."""

    dispute: Dispute
    lease: Lease
    terms: Contract
    record: evidence.Record
    held: dict[int, Path]  # opened states that are what was committed to, by leaf
    whole: bool  # platform and host are of one class: equal bits are due everywhere
    turns: list[Turn] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Segments of the run."""
        return len(self.terms.leaf_steps()) - 1

    @cached_property
    def report(self) -> ReplayReport:
        """What the turns found until now, without the second looks."""
        return _joined([turn for turn in self.turns if not turn.confirms])

    @cached_property
    def confirmed(self) -> ReplayReport | None:
        """What the second look at the false segment found."""
        found = [turn for turn in self.turns if turn.confirms]
        return _joined(found) if found else None

    @property
    def passed(self) -> set[int]:
        return {segment.leaf for segment in self.report.segments}

    @property
    def left(self) -> set[int]:
        """Segments that no turn has passed."""
        return set(range(self.count)) - self.passed

    @property
    def asked(self) -> set[int]:
        if not self.whole:
            return set(self._judgeable()) if self.turns else set()
        return {leaf for turn in self.turns if not turn.confirms for leaf in range(turn.start, turn.stop)}

    @property
    def false_start(self) -> bool:
        """Whether the seed gives another initial state than the committed one."""
        initial = self.report.initial_state
        return self.whole and initial is not None and initial != self.record.leaves[0].state

    @property
    def suspect(self) -> int | None:
        """The first segment that came out otherwise, or not at all. None between classes, where otherwise need not be false."""
        if not self.whole:
            return None
        false = first_false(self.seen(self.report, self.asked)) if self.report.segments else None
        return min(({false} if false is not None else set()) | (self.asked - self.passed), default=None)

    def seen(self, report: ReplayReport, asked: Collection[int]) -> Evidence:
        """The evidence that a re-execution is, for the verdict's own rules."""
        found = Challenge.objects.filter(lease=self.lease).first()
        measured = challenges.shown(found, self.record)[0] if found is not None else None
        return judgement.evidence(
            self.lease, self.record, pev_percent=10, measured=measured, replay=report, segments=sorted(asked)
        )

    def next(self) -> Plan | None:
        """The next turn; None where enough is known."""
        here = self._here()
        if self.false_start or self.suspect is not None:
            return (
                None if self.confirmed is not None else self._second_look(0 if self.false_start else self.suspect, here)
            )
        if not self.whole:
            return self._pairs()
        hint = self._hint()
        if hint is not None and hint not in self.passed and min(here, default=hint + 1) <= hint:
            return self._stretch(hint, hint + 1, here)
        if not self.left:
            return None
        start = min(self.left)
        if min(here, default=start + 1) > start:  # from the seed, and never from there again
            return None if any(turn.start == turn.stop for turn in self.turns) else Plan(0, 0, (), {}, keep=0)
        seconds = (self.lease.job.iteration_seconds or 1) * self.terms.checkpoint_every
        per_turn = max(1, int(settings.LABAPEX.dispute_turn_seconds / seconds))
        ends = (self.count, start + per_turn, *(index for index in self.held if index > start))
        return self._stretch(start, min(ends), here)

    def path(self, leaf: int) -> Path | None:
        """The committed state of a leaf, where it is here."""
        return self._here().get(leaf)

    def _here(self) -> dict[int, Path]:
        made: dict[int, Path] = {}
        for turn in self.turns:
            if turn.kept is not None:
                with suppress(FileNotFoundError):  # it was gone on from, and deleted
                    made[turn.kept] = store.fetch(self.dispute.place(turn.kept))
        return made | self.held

    def _stretch(self, start: int, stop: int, here: dict[int, Path]) -> Plan:
        origin = max(index for index in here if index <= start)
        keep = None if stop in self.held else stop
        return Plan(origin, stop, tuple(range(origin, stop)), {origin: here[origin]}, keep=keep)

    def _second_look(self, suspect: int | None, here: dict[int, Path]) -> Plan:
        assert suspect is not None
        before = [index for index in here if index <= suspect]
        if not before:  # the initial state itself is false, and no other is here
            return Plan(0, 0, (), {}, confirms=True)
        ends = {suspect + 1} & self.held.keys()
        given = {index: here[index] for index in {max(before), *ends}}
        return Plan(suspect, suspect + 1, (suspect,), given, tuple(end - 1 for end in ends), confirms=True)

    def _pairs(self) -> Plan | None:
        """Between classes: the segments whose two states are here, all in one turn; the others cannot be judged."""
        pairs = self._judgeable()
        return None if self.turns or not pairs else Plan(pairs[0], pairs[-1] + 1, pairs, self.held, pairs)

    def _judgeable(self) -> tuple[int, ...]:
        return tuple(index for index in sorted(self.held) if index + 1 in self.held)

    def _hint(self) -> int | None:
        """What the contested verdict had found false."""
        found = Replay.objects.filter(lease=self.lease).first()
        if self.dispute.side != Side.WORKER.value or found is None:
            return None
        report = ReplayReport.model_validate(found.report)
        return first_false(self.seen(report, [segment.leaf for segment in report.segments]))


def course(dispute: Dispute) -> Course:
    """Read back what is known. The log's chain is checked again from the stored bytes."""
    lease = Lease.objects.select_related("job", "worker__owner").get(pk=dispute.lease_id)
    terms, record = lease.terms, evidence.read(lease)
    asked = Challenge.objects.filter(lease=lease).first()
    opened = openings.states(terms, {*(asked.all_indices if asked is not None else ()), *terms.held})
    held = {index: path for index, path in opened.items() if openings.is_leafs(path, record.leaves[index])}
    turns = list(dispute.turns.order_by("pk"))
    return Course(dispute, lease, terms, record, held, takeover.reproducible(lease), turns)


def take(known: Course, plan: Plan, beat: Beat) -> Course:
    """Take one turn, and how far it has come then.

    Raises `ChildFailed` where it could not take place: that is no evidence against anybody."""
    settings.LABAPEX.private_folder("disputes", str(known.dispute.pk))
    target = None if plan.keep is None else known.dispute.place(plan.keep)
    report, _ = replays.run(
        known.lease,
        known.record.leaves,
        plan.given,
        plan.segments,
        compare=plan.compare,
        made={} if plan.keep is None or target is None else {plan.keep: target},
        beat=beat,
    )
    if known.turns and not plan.confirms:  # of the whole run: the first turn has it
        report = report.model_copy(update={"batches": None})
    beat()
    try:
        with transaction.atomic():
            turn = Turn.objects.create(
                dispute=known.dispute,
                start=plan.start,
                stop=plan.stop,
                confirms=plan.confirms,
                kept=plan.keep if target is not None and store.size(target) is not None else None,
                report=report.model_dump(mode="json"),
                at=clock.now(),
            )
            Dispute.objects.filter(pk=known.dispute.pk).update(
                executed=F("executed") + len(report.segments), attempts=0
            )
    except IntegrityError:
        return course(known.dispute)  # somebody else took the same turn, which is as good
    come = replace(known, turns=[*known.turns, turn])
    if come.suspect is None and not come.false_start:  # of the states that were made the next turn needs the last one
        for index in plan.given.keys() - known.held.keys():
            store.delete(known.dispute.place(index))
    return come


def _joined(turns: list[Turn]) -> ReplayReport:
    """The reports of several turns as one; a segment that two of them passed counts once."""
    reports = [ReplayReport.model_validate(turn.report) for turn in turns]
    if not reports:
        return ReplayReport()
    whole = reduce(together, reports)
    by_leaf = {segment.leaf: segment for segment in reversed(whole.segments)}
    return whole.model_copy(update={"segments": tuple(by_leaf[leaf] for leaf in sorted(by_leaf))})
