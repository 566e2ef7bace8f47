"""What a replay reports where a script or a state gives no more than a part of it."""

from __future__ import annotations

from pathlib import Path

from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

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
