"""A run that its client stopped: its complete epochs are judged as if no more had been ordered."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

from labapex.proof.policy import decide
from labapex.proof.rules import Evidence, judge
from labapex.protocol.replay import ReplayReport, ReplayRequest


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A run of three epochs, to its end."""
    folder = tmp_path_factory.mktemp("whole")
    facts = lab.preflight(SCRIPTS / "schedulers.py", folder).facts
    assert facts is not None
    return lab.record(laboratory.contract(facts), folder)


def stopped(whole: Recording, epochs: int) -> Recording:
    """What counts of it where it was stopped when so many epochs were complete."""
    terms = whole.contract.model_copy(update={"stopped": epochs})
    leaves = whole.leaves[: len(terms.leaf_steps())]
    return Recording(terms, whole.folder, whole.losses[: terms.until], whole.times[: terms.until], leaves)


def looked_at(lab: Lab, run: Recording) -> Evidence:
    """All segments replayed, the settings foretold, and whatever they give cause for doubt."""
    *_, found = lab.look(run, laboratory.challenge(run, segments=1000), foretell=60)
    return replace(found, known=frozenset())


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_complete_epochs_of_a_stopped_run_are_verified(lab: Lab, whole: Recording, epochs: int) -> None:
    run = stopped(whole, epochs)
    found = looked_at(lab, run)
    assert decide(judge(found))[0] == "verified"
    results = {result.rule: result for result in judge(found)}
    assert (results["log-count"].value, results["log-count"].limit) == (run.contract.until, run.contract.until)
    assert results["skeleton"].result == "pass"
    assert found.replay is not None
    assert [s.leaf for s in found.replay.segments] == list(range(len(run.leaves) - 1))


def test_a_log_that_goes_beyond_the_stop_is_not_what_was_stopped(whole: Recording) -> None:
    run = replace(whole, contract=whole.contract.model_copy(update={"stopped": 1}))
    found = {r.rule: r.result for r in judge(laboratory.evidence(run, laboratory.window(0), ReplayReport()))}
    assert (found["log-chain"], found["log-count"]) == ("fail", "fail")


def test_a_replay_makes_a_state_on_its_way_that_is_the_committed_one(
    lab: Lab, whole: Recording, tmp_path: Path
) -> None:
    run = stopped(whole, 1)
    last = len(run.leaves) - 1
    laboratory.place(SCRIPTS / "schedulers.py", tmp_path)
    (tmp_path / "states").mkdir()
    shutil.copy(whole.folder / "states" / "0.safetensors", tmp_path / "states")
    request = ReplayRequest(contract=run.contract, segments=(last - 1,), make=(last,), digests={0: run.leaves[0].state})
    report = ReplayReport.model_validate(lab.ask("replay", tmp_path, request=request.model_dump(mode="json")))
    assert report.problem is None
    made = (tmp_path / "made" / f"{last}.safetensors").read_bytes()
    assert made == (whole.folder / "states" / f"{last}.safetensors").read_bytes()
