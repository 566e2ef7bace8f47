"""What a recording keeps, and how it goes on after an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

from labapex.errors import TrainingFailed
from labapex.proof import recording
from labapex.proof.challenge import Opening
from labapex.protocol.contract import Contract


@pytest.fixture(scope="module")
def another_host() -> Iterator[Lab]:
    """Another process, in which sets and dictionaries of strings have another order."""
    made = Lab(caps={"PYTHONHASHSEED": "7"})
    yield made
    made.close()


def terms(lab: Lab, name: str, folder: Path, *, keep: int) -> Contract:
    facts = lab.preflight(SCRIPTS / f"{name}.py", folder).facts
    assert facts is not None
    return laboratory.contract(facts, keep=keep)


def claims(made: Recording) -> list[tuple[str, int, float | None]]:
    """What the leaves commit to, whatever the terms are."""
    return [(leaf.state, leaf.size, leaf.update_norm) for leaf in made.leaves]


def test_every_leaf_is_committed_and_only_the_kept_states_are_written(lab: Lab, tmp_path: Path) -> None:
    contract = terms(lab, "trainer_class", tmp_path, keep=3)
    some = lab.record(contract, tmp_path)
    written = {int(p.stem) for p in (tmp_path / "states").glob("*.safetensors")}
    last = len(some.leaves) - 1
    assert written == {*range(0, last, 3), last}
    assert {int(p.stem) for p in (tmp_path / "states").glob("*.tree")} == written
    everything = lab.record(contract.model_copy(update={"keep_every": 1}), tmp_path)
    assert claims(some) == claims(everything)


def test_segments_between_kept_states_are_reached_from_the_one_before(lab: Lab, tmp_path: Path) -> None:
    made = lab.record(terms(lab, "schedulers", tmp_path, keep=3), tmp_path)
    asked = Opening(indices=(0, 3), segments=(1, 4, 5), evaluations=(), compare=(5,))
    shutil.rmtree(tmp_path / "states")
    made = lab.record(made.contract, tmp_path)

    report = lab.replay(made, asked)
    assert report.problem is None
    assert [(s.leaf, s.origin) for s in report.segments] == [(0, None), (1, 0), (3, None), (4, 3), (5, 3)]
    for segment in report.segments:
        leaf = made.leaves[segment.leaf + 1]
        assert (segment.state, segment.update_norm, segment.batches) == (leaf.state, leaf.update_norm, leaf.batches)


@pytest.mark.parametrize("name", ["functions", "schedulers", "gan"])
def test_a_killed_recording_goes_on_in_mid_epoch_on_another_host_as_if_nothing_had_been(
    lab: Lab, another_host: Lab, name: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    contract = terms(lab, name, here, keep=3)
    whole = lab.record(contract, here)

    lab.begin(contract, here, until=5)
    known = recording.resumable(here, contract)
    assert known[-1].index == 3
    assert known[-1].step % contract.facts.iterations_per_epoch, "it is to be in mid-epoch"
    assert known == whole.leaves[: len(known)]
    laboratory.place(SCRIPTS / f"{name}.py", there)
    laboratory.carry(here, there)

    resumed = another_host.go_on(contract, there)
    assert resumed.leaves == whole.leaves
    assert resumed.losses == whole.losses
    assert len(resumed.times) == len(whole.times)


def test_a_recording_does_not_go_on_from_a_state_that_is_not_the_committed_one(lab: Lab, tmp_path: Path) -> None:
    contract = terms(lab, "functions", tmp_path, keep=1)
    lab.begin(contract, tmp_path, until=3)
    last = recording.resumable(tmp_path, contract)[-1].index
    states = tmp_path / "states"
    shutil.copy(states / f"{last - 1}.safetensors", states / f"{last}.safetensors")
    with pytest.raises(TrainingFailed, match=f"state of leaf {last} is not the one that was committed"):
        lab.go_on(contract, tmp_path)
