"""Where leaves claim other batches than the first loader gives it is looked, and a replay decides."""

from __future__ import annotations

from dataclasses import replace

from tests.labapex.proof.honest import ASKED, HONEST, REPORT, STEPS, chained, segment, sha, told

from labapex.proof.doubts import doubts
from labapex.proof.evidence import Evidence
from labapex.proof.orders import LOOKED_AT, batch_order, order_doubt

UNSEEN = next(n for n in range(len(STEPS) - 1) if n not in ASKED)


def claimed(*others: int) -> Evidence:
    """A run whose segments `others` took other batches than were foretold, by what their leaves say."""
    own = [
        leaf.model_copy(update={"batches": sha("own", leaf.index)}) if leaf.index - 1 in others else leaf
        for leaf in HONEST.leaves
    ]
    return replace(HONEST, leaves=chained(own))


def looked(evidence: Evidence, number: int, batches: str) -> Evidence:
    """What is known when a segment more was replayed and took these batches."""
    return told(evidence, segments=(*REPORT.segments, segment(number, batches=batches)))


def test_batches_as_foretold_pass() -> None:
    assert batch_order(HONEST) == (0.0, 0.0, "pass", "")


def test_where_other_batches_are_claimed_the_first_segment_of_each_stretch_is_replayed() -> None:
    assert batch_order(claimed(UNSEEN))[2] == "not-applicable"
    assert doubts(claimed(UNSEEN), {}, ends=False, rounds=0, states=0).segments == {UNSEEN}
    assert order_doubt(claimed(UNSEEN, UNSEEN + 1), {}).segments == {UNSEEN}
    every_other = range(0, len(STEPS) - 1, 2)
    assert sorted(order_doubt(claimed(*every_other), {}).segments) == list(every_other)[:LOOKED_AT]


def test_a_script_that_takes_other_batches_is_not_held_responsible_for_it() -> None:
    evidence = looked(claimed(UNSEEN), UNSEEN, sha("own", UNSEEN + 1))
    value, limit, result, detail = batch_order(evidence)
    assert (value, limit, result) == (0.0, 0.0, "pass")
    assert f"from segment {UNSEEN} on" in detail
    assert not doubts(evidence, {}, ends=False, rounds=1, states=1).segments - {UNSEEN}


def test_a_claim_that_a_replay_does_not_bear_out_decides() -> None:
    value, limit, result, detail = batch_order(looked(claimed(UNSEEN), UNSEEN, sha("batches", UNSEEN + 1)))
    assert (value, limit, result) == (1.0, 0.0, "fail")
    assert f"segment {UNSEEN} is the first" in detail


def test_batches_that_cannot_be_foretold_are_compared_where_they_are_replayed() -> None:
    assert batch_order(told(HONEST, batches=None))[2] == "pass"
    assert batch_order(told(claimed(ASKED[0]), batches=None))[2] == "fail"
    assert batch_order(told(HONEST, batches=(REPORT.batches or ())[1:]))[2] == "fail"
