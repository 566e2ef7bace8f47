"""A run that several hosts made, judged as one: each comes to the same leaves, and whoever lies is found in his own part."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

from labapex.proof.chunks import asked
from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, blamed, judge
from labapex.protocol.contract import Contract, Handover
from labapex.protocol.records import Leaf
from labapex.protocol.replay import ReplayReport

SECOND = UUID(int=3)
LEAF = 3  # in mid-epoch: behind it the second host goes on
HELD = (0, LEAF)


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A run by one host, under the terms of who begins."""
    folder = tmp_path_factory.mktemp("whole")
    facts = lab.preflight(SCRIPTS / "schedulers.py", folder).facts
    assert facts is not None
    made = lab.record(laboratory.contract(facts), folder)
    assert made.leaves[LEAF].step % facts.iterations_per_epoch
    return made


def handed_over(terms: Contract, leaf: Leaf, held: tuple[int, ...] = HELD) -> Contract:
    """The terms of who goes on behind a leaf."""
    handover = Handover(lease=terms.lease, leaf=leaf, held=held)
    return terms.model_copy(update={"lease": SECOND, "handovers": (*terms.handovers, handover)})


def place(folder: Path) -> Path:
    laboratory.place(SCRIPTS / "schedulers.py", folder)
    return folder


def together(whole: Recording, part: Recording, terms: Contract, folder: Path) -> Recording:
    """What the platform has in the end: the log of both hosts, the states that it holds, and those of the second one."""
    place(folder)
    (folder / "states").mkdir()
    for index in terms.held:
        shutil.copy(whole.folder / "states" / f"{index}.safetensors", folder / "states")
    for leaf in part.leaves:
        shutil.copy(part.folder / "states" / f"{leaf.index}.safetensors", folder / "states")
    step = whole.leaves[LEAF].step
    losses, times = [*whole.losses[:step], *part.losses], [*whole.times[:step], *part.times]
    return Recording(terms, folder, losses, times, [*whole.leaves[: LEAF + 1], *part.leaves])


def looked_at(lab: Lab, run: Recording) -> Evidence:
    """All segments replayed, and whatever they give cause for doubt."""
    opening = laboratory.challenge(run, segments=1000)
    assert {index for index in opening.indices if index <= LEAF} <= run.contract.held
    *_, found = lab.look(run, opening)
    return replace(found, known=frozenset())


def test_who_goes_on_comes_to_the_same_leaves_and_both_parts_are_judged_as_one(
    lab: Lab, whole: Recording, tmp_path: Path
) -> None:
    terms = handed_over(whole.contract, whole.leaves[LEAF])
    state = whole.folder / "states" / f"{LEAF}.safetensors"
    part = lab.take_over(terms, place(tmp_path / "second"), state)
    assert part.leaves == whole.leaves[LEAF + 1 :]
    assert part.losses == whole.losses[whole.leaves[LEAF].step :]
    run = together(whole, part, terms, tmp_path / "platform")
    found = looked_at(lab, run)
    assert decide(judge(found))[0] == "verified"
    assert found.replay is not None
    assert [s.leaf for s in found.replay.segments] == list(range(len(run.leaves) - 1))
    assert {s.origin for s in found.replay.segments if s.leaf < LEAF} == {None, 0}
    assert set(asked(terms, run.leaves)) == {*HELD, *range(LEAF + 1, len(run.leaves))}


def test_who_goes_on_from_another_state_than_he_was_given_is_refused_and_blamed(
    lab: Lab, whole: Recording, tmp_path: Path
) -> None:
    """He takes one of his own, of another run, and commits to what he computes from there, in a chain that holds."""
    stolen_terms = whole.contract.model_copy(update={"seed": "d" * 64})
    stolen = lab.record(stolen_terms, place(tmp_path / "another"))
    own = handed_over(whole.contract, stolen.leaves[LEAF])
    part = lab.take_over(own, place(tmp_path / "second"), stolen.folder / "states" / f"{LEAF}.safetensors")
    part.leaves = chained(part.leaves, whole.leaves[LEAF])
    terms = handed_over(whole.contract, whole.leaves[LEAF])
    found = looked_at(lab, together(whole, part, terms, tmp_path / "platform"))
    results = {result.rule: result.result for result in judge(found)}
    assert (results["log-chain"], results["replay"]) == ("pass", "fail")
    verdict, rule, _ = decide(judge(found))
    assert verdict == "rejected"
    assert blamed(found, rule or "").lease == SECOND


def test_a_lie_of_who_was_lost_is_blamed_on_him(lab: Lab, whole: Recording, tmp_path: Path) -> None:
    terms = handed_over(whole.contract, whole.leaves[LEAF])
    part = replace(whole, leaves=whole.leaves[LEAF + 1 :], losses=whole.losses[whole.leaves[LEAF].step :])
    run = together(whole, part, terms, tmp_path / "platform")
    found = looked_at(lab, run)
    better = replace(found, losses=[0.9 * run.losses[0], *run.losses[1:]])
    assert blamed(better, "point-loss").lease == whole.contract.lease
    assert blamed(better, "initialisation").lease == whole.contract.lease
    assert blamed(replace(better, opening_problem="withheld"), "opening").lease == SECOND


def test_a_run_is_not_handed_over_behind_a_leaf_that_is_none_of_its_own(whole: Recording) -> None:
    other = whole.leaves[LEAF].model_copy(update={"state": "00" * 32})
    run = replace(whole, contract=handed_over(whole.contract, other))
    found = {r.rule: r for r in judge(laboratory.evidence(run, laboratory.window(0), ReplayReport()))}
    assert found["log-chain"].result == "fail"
    assert found["log-chain"].value == f"the run was handed over behind another leaf {LEAF}"


def chained(leaves: list[Leaf], before: Leaf) -> list[Leaf]:
    """Leaves that follow one another, and the one before them."""
    made = [before]
    for leaf in leaves:
        made.append(leaf.model_copy(update={"prev": made[-1].digest()}))
    return made[1:]
