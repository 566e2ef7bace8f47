"""Where claimed settings depart from the foretold ones it is suspected, looked at, and never held against anybody by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.proof.honest import HONEST, REPORT, STEPS, chained, segment, sha, told

from labapex.proof.doubts import doubts
from labapex.proof.evidence import Evidence
from labapex.proof.foretold import LOOKED_AT, skeleton, skeleton_doubts
from labapex.proof.policy import decide
from labapex.proof.rules import judge
from labapex.protocol.replay import Foretold

DUE = tuple(sha("settings", n) for n in range(len(STEPS)))
LAST = len(STEPS) - 1


def claimed(*others: int) -> Evidence:
    """A run whose leaves `others` claim other settings than were foretold."""
    leaves = [
        leaf.model_copy(update={"settings": sha("own")}) if leaf.index in others else leaf for leaf in HONEST.leaves
    ]
    return replace(told(HONEST, foretold=Foretold(settings=DUE)), leaves=chained(leaves))


def test_settings_as_foretold_pass() -> None:
    assert skeleton(claimed())[:3] == (0.0, 0.0, "pass")


@pytest.mark.parametrize(
    "foretold",
    [
        None,
        Foretold(problem="it takes longer than 1 s"),
        Foretold(settings=DUE[1:]),
        Foretold(settings=(None,) * len(DUE)),
    ],
    ids=["not asked for", "cannot be run so", "of another length", "all depend on losses"],
)
def test_what_was_not_foretold_is_not_judged(foretold: Foretold | None) -> None:
    evidence = told(claimed(2), foretold=foretold)
    assert skeleton(evidence)[2] == "not-applicable"
    assert not doubts(evidence, {}, ends=True, rounds=0, states=0)


def test_settings_that_depend_on_losses_are_left_out() -> None:
    evidence = told(claimed(2), foretold=Foretold(settings=(*DUE[:2], None, *DUE[3:])))
    assert skeleton(evidence)[:3] == (0.0, 0.0, "pass")
    assert skeleton_doubts(evidence.leaves, (*DUE[:2], None, *DUE[3:])) == set()


def test_other_settings_are_suspected_and_decide_nothing() -> None:
    evidence = claimed(2, 4)
    value, limit, result, detail = skeleton(evidence)
    assert (value, limit, result) == (2.0, 0.0, "fail")
    assert "leaf 2" in detail
    assert decide(judge(evidence))[0] == "verified"


def test_where_they_begin_and_cease_it_is_looked() -> None:
    evidence = claimed(2)
    assert skeleton_doubts(evidence.leaves, DUE) == {1, 2}
    found = doubts(evidence, {}, ends=False, rounds=0, states=0)
    assert found.segments == {1, 2} - set(evidence.asked)
    assert found.indices == found.segments


def test_what_a_replay_does_too_was_the_scripts_doing() -> None:
    evidence = claimed(2, 3)
    again = tuple(segment(n, settings=evidence.leaves[n + 1].settings) for n in (1, 3))
    assert skeleton(told(evidence, segments=(*REPORT.segments, *again)))[2] == "not-applicable"
    assert skeleton(told(evidence, segments=(*REPORT.segments, again[0])))[2] == "fail"
    other = tuple(segment(n, state=sha("elsewhere")) for n in (1, 3))
    assert skeleton(told(evidence, segments=other))[2] == "fail"


def test_a_report_of_segments_that_do_not_exist_is_survived() -> None:
    strange = tuple(segment(0).model_copy(update={"leaf": n}) for n in (-2, LAST, 10**9))
    assert skeleton(told(claimed(2), segments=strange))[2] == "fail"


@given(st.lists(st.sampled_from(["same", "other", "open"]), min_size=1, max_size=40))
def test_every_stretch_of_other_settings_is_entered_and_left_through_a_doubt(kinds: Sequence[str]) -> None:
    leaves = [HONEST.leaves[0].model_copy(update={"settings": kind}) for kind in kinds]
    due = [None if kind == "open" else "same" for kind in kinds]
    found = skeleton_doubts(leaves, due)
    known = [n for n, kind in enumerate(kinds) if kind != "open"]
    edges = [b - 1 for a, b in pairwise(known) if kinds[a] != kinds[b]]
    assert found == set(edges[:LOOKED_AT])
