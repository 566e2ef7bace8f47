"""What a replay reports where a script or a state gives no more than a part of it."""

from __future__ import annotations

from pathlib import Path

from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

from labapex.proof.challenge import Opening
from labapex.proof.state import State


def recorded(lab: Lab, name: str, folder: Path) -> Recording:
    facts = lab.preflight(SCRIPTS / f"{name}.py", folder).facts
    assert facts is not None
    return lab.record(laboratory.contract(facts), folder)


def test_a_state_that_breaks_the_script_at_once_does_not_hide_the_initial_state(lab: Lab, tmp_path: Path) -> None:
    recording = recorded(lab, "late_layers", tmp_path)
    file = tmp_path / "states" / "2.safetensors"
    state = State.load(file)
    state.structure["optimizers"].clear()
    forged = State(state.structure, state.tensors, state.parameters)
    forged.save(file)
    recording.leaves[2] = recording.leaves[2].model_copy(update={"state": forged.digest()})

    report = lab.replay(recording, laboratory.window(2))
    assert "does not fit the script" in str(report.problem)
    assert report.initial_state == recording.leaves[0].state


def test_the_order_follows_from_the_seed_alone_where_no_loop_makes_the_loader(lab: Lab, tmp_path: Path) -> None:
    kept, made = recorded(lab, "functions", tmp_path / "a"), recorded(lab, "fresh_loaders", tmp_path / "b")
    told = lab.replay(kept, laboratory.window(0)).batches
    assert told == tuple(leaf.batches for leaf in kept.leaves[1:])
    assert lab.replay(made, laboratory.window(0)).batches is None


def test_a_run_is_made_again_from_its_seed_in_turns_by_the_states_that_each_leaves(lab: Lab, tmp_path: Path) -> None:
    recording = recorded(lab, "functions", tmp_path)
    states, made = tmp_path / "states", tmp_path / "made"
    committed = {leaf.index: leaf.state for leaf in recording.leaves}
    for file in states.iterdir():
        file.unlink()  # nothing of the host's is left but its word
    lab.replay(recording, Opening((), (), (), ()))
    (made / "initial.safetensors").rename(states / "0.safetensors")
    last = len(recording.leaves) - 1
    for start, stop in ((0, 2), (2, last)):
        report = lab.replay(recording, Opening((start,), tuple(range(start, stop)), (), ()), make=(stop,))
        assert report.problem is None
        assert [segment.state for segment in report.segments] == [committed[n + 1] for n in range(start, stop)]
        (made / f"{stop}.safetensors").rename(states / f"{stop}.safetensors")
        assert State.load(states / f"{stop}.safetensors").digest() == committed[stop]
    lab.replay(recording, Opening((last,), (), (), ()))
    assert (tmp_path / "weights.safetensors").stat().st_size > 0
