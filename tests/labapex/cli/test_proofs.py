"""The commands that need no platform, through the command line and the real confined child."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform
from tests.labapex.proof.forge import SCRIPT, Forgery, rounded_elsewhere, write_job

from labapex import sandbox
from labapex.proof import folder
from labapex.proof.tolerance import NEEDED, Calibration
from labapex.protocol.canonical import canonical

# In the recording itself, not in the preflight's trials: these have the terms one folder further up.
DIES_ONCE = (
    "import os, pathlib; terms = pathlib.Path('../terms.json'); "
    "turns = (terms.with_name('turns') if terms.exists() else pathlib.Path('turns')).open('a'); "
    "turns.write('.'); (terms.exists(), turns.tell()) == (True, 8) and os.kill(os.getpid(), 9)"
)


@pytest.fixture(autouse=True)
def _child_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sandbox where one can be had; a machine without one must say that it goes without."""
    if sandbox.available() is not None:
        monkeypatch.setenv(sandbox.UNCONFINED_SETTING, "1")


def test_a_proof_is_verified_by_somebody_who_has_it_the_script_and_the_data(
    labapex: Labapex, platform: MemoryPlatform, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABAPEX_TOKEN")
    job = recorded / "job"
    result = labapex("verify", recorded / "proof", "--script", job / "train.py", "--data", job / "data")
    assert result.code == 0, result.err
    assert "verified" in result.out
    assert "train.py" in result.out
    assert "leaf-claims" in result.out
    assert platform.seen == []


def test_as_json_the_verdict_is_on_stdout_and_nothing_else(labapex: Labapex, recorded: Path) -> None:
    result = labapex("verify", recorded / "proof", "--data", recorded / "job" / "data", "--audit", 1, "--json")
    assert result.code == 0, result.err
    assert len(result.out.splitlines()) == 1
    assert result.json["verdict"] == "verified"
    assert result.json["proof_root"] == folder.read(recorded / "proof").manifest.proof_root
    decisive = {rule["rule"]: rule["result"] for rule in result.json["rules"] if rule["weight"] == "decides"}
    assert decisive.pop("uniqueness") == "not-applicable"  # a folder has no other leases' states beside it
    assert set(decisive.values()) == {"pass"}


def test_replay_tells_the_error_of_one_stretch(labapex: Labapex, recorded: Path) -> None:
    arguments = (recorded / "proof", "--data", recorded / "job" / "data", "--json")
    result = labapex("replay", *arguments, "--from", 5, "--steps", 5)
    assert result.code == 0, result.err
    assert (result.json["start"], result.json["stop"], result.json["digest_equal"]) == (5, 10, True)
    assert [result.json[name] for name in ("l1", "l2", "linf", "relative", "losses")] == [0.0] * 5
    assert labapex("replay", *arguments, "--from", 3, "--steps", 1).code == 2


def test_a_script_is_recorded_as_it_is_and_its_epochs_are_counted(labapex: Labapex, tmp_path: Path) -> None:
    script = write_job(tmp_path / "job")
    before = script.read_bytes()
    result = labapex("record", script, "--out", tmp_path / "proof", "--every", 5, "--json", "--", "--lr", "0.05")
    assert result.code == 0, result.err
    assert script.read_bytes() == before
    summary = result.json
    assert (summary["epochs"], summary["iterations_per_epoch"], summary["leaves"]) == (2, 5, 3)
    proof = folder.read(tmp_path / "proof")
    assert proof.contract.args == ("--lr", "0.05")
    assert summary["seed"] == proof.contract.seed
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".labapex")) == []


def test_a_recording_whose_process_was_killed_goes_on_to_the_same_proof_of_kept_states_alone(
    labapex: Labapex, tmp_path: Path
) -> None:
    job, terms = tmp_path / "job", ("--every", 2, "--keep-every", 2, "--seed", "a", "--epochs", 2)
    script = write_job(job)
    assert labapex("record", script, "--out", tmp_path / "whole", *terms).code == 0
    whole = folder.read(tmp_path / "whole")
    assert whole.states == {0, 2, 4, 6}

    text = script.read_text()
    script.write_text(text.replace("        optimizer.step()\n", f"        optimizer.step(); {DIES_ONCE}\n"))
    out = tmp_path / "proof"
    result = labapex("record", script, "--out", out, *terms)
    assert result.code == 1
    assert "signal 9" in result.err
    assert "--resume" in result.err
    assert "delete it" in labapex("record", script, "--out", out, *terms).err
    assert "under the terms that" in labapex("record", script, "--out", out, "--resume", "--every", 2).err
    result = labapex("record", script, "--out", out, "--resume")
    assert result.code == 0, result.err
    assert not out.with_name("proof.recording").exists()

    resumed = folder.read(out)
    assert [leaf.state for leaf in resumed.leaves] == [leaf.state for leaf in whole.leaves]
    assert resumed.losses == whole.losses
    verdict = labapex("verify", out, "--data", job / "data", "--json")
    assert verdict.code == 0, verdict.err
    assert verdict.json["cost"]["opened_states"] == 4
    stretch = labapex("replay", out, "--data", job / "data", "--json", "--from", 2, "--steps", 3).json
    assert (stretch["origin"], stretch["digest_equal"], stretch["losses"], stretch["l2"]) == (0, True, 0.0, None)


def test_updates_by_hand_are_recorded_and_verified_once_a_session_says_them(labapex: Labapex, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "session_data.py"
    result = labapex("record", script, "--out", tmp_path / "proof", "--every", 4, "--epochs", 3, "--json")
    assert result.code == 0, result.err
    assert (result.json["epochs"], result.json["iterations_per_epoch"]) == (3, 6)
    result = labapex("verify", tmp_path / "proof", "--json")
    assert result.code == 0, result.err
    assert result.json["verdict"] == "verified"


def test_a_script_that_fails_leaves_no_proof_and_exits_100(labapex: Labapex, tmp_path: Path) -> None:
    script = write_job(tmp_path / "job")
    script.write_text(SCRIPT.replace("loss.backward()", "los.backward()"))
    result = labapex("record", script, "--out", tmp_path / "proof", "--epochs", 2)
    assert result.code == 100
    assert "NameError: name 'los' is not defined" in result.err.splitlines()[-1]
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: (root / "job" / "train.py").write_text("print()"), "rule 'sources'.*train.py"),
        (lambda root: (root / "job" / "data" / "points.bin").write_bytes(b"x"), "rule 'sources'.*points.bin differs"),
        (lambda root: (root / "proof" / "losses.f64").write_bytes(bytes(80)), "rule 'proof-folder'.*losses.f64"),
        (lambda root: (root / "proof" / "leaves.jsonl").unlink(), "rule 'proof-folder'.*leaves.jsonl"),
    ],
    ids=["script", "data", "losses", "leaves"],
)
def test_what_does_not_fit_is_rejected_with_104_and_named(
    labapex: Labapex, recorded: Path, tmp_path: Path, change: object, says: str
) -> None:
    import re

    root = Path(shutil.copytree(recorded, tmp_path / "copy"))
    change(root)  # type: ignore[operator]
    result = labapex("verify", root / "proof", "--script", root / "job" / "train.py", "--json")
    assert result.code == 104
    assert re.search(says, result.err)
    assert result.json["verdict"] == "rejected"
    assert len(result.err.strip().splitlines()) == 1


def test_a_mistake_in_a_command_is_one_line_and_2(labapex: Labapex, recorded: Path, tmp_path: Path) -> None:
    proof, job = recorded / "proof", recorded / "job"
    (tmp_path / "policy.json").write_text(json.dumps({"audit_segment": 3}))
    (tmp_path / "line.json").write_text(json.dumps({"line": {"start": 1e-6, "error": 0.01, "loss": 1e-4}}))
    for arguments, says in (
        (("verify", proof), "--data"),
        (("verify", tmp_path), "labapex record"),
        (("verify", proof, "--policy", tmp_path / "policy.json"), "did you mean 'audit_segments'"),
        (("verify", proof, "--policy", tmp_path / "none.json"), "cannot be read"),
        (("verify", proof, "--policy", tmp_path / "line.json", "--tolerance", tmp_path / "line.json"), "give one"),
        (("verify", proof, "--tolerance", tmp_path / "line.json"), "is no calibration"),
        (("calibrate", proof, "--out", tmp_path / "line.json"), "is no calibration"),
        (("verify", proof, "--script", tmp_path / "none.py"), "there is no file"),
        (("verify", proof, "--url", "http://x"), "not to a proof folder"),
        (("verify", proof, "--data", job / "data", "--key", "0" * 64), "this folder holds none"),
        (("verify", "12345678", "--audit", 3), "belong to a proof folder"),
        (("record", job / "train.py", "--out", proof), "exists already"),
        (("record", job / "data", "--out", tmp_path / "new"), "no Python file"),
        (("record", job / "train.py", "--out", tmp_path / "new", "--data", tmp_path / "none"), "no folder"),
    ):
        result = labapex(*arguments)
        assert (result.code, says in result.err) == (2, True), (arguments, result.err)
        assert len(result.err.strip().splitlines()) == 1, result.err


def test_without_a_sandbox_foreign_code_is_refused_unless_the_setting_says_otherwise(
    labapex: Labapex, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(sandbox.UNCONFINED_SETTING, raising=False)
    monkeypatch.setattr(sandbox, "available", lambda: "bwrap is missing; install the package bubblewrap")
    result = labapex("verify", recorded / "proof", "--data", recorded / "job" / "data")
    assert result.code == 1
    assert "install the package bubblewrap" in result.err
    assert sandbox.UNCONFINED_SETTING in result.err


@pytest.fixture
def elsewhere(recorded: Path, tmp_path: Path) -> Path:
    return rounded_elsewhere(Forgery.of(folder.read(recorded / "proof")), tmp_path / "elsewhere")


def test_work_of_another_class_is_judged_by_what_honest_work_was_found_to_differ_by(
    labapex: Labapex, recorded: Path, elsewhere: Path, tmp_path: Path
) -> None:
    data = ("--data", recorded / "job" / "data", "--json")
    out = tmp_path / "tolerance.json"
    result = labapex("verify", elsewhere, *data)
    assert result.code == 105
    assert "this host is of another class than the one that trained" in result.err
    assert "cpu: another one" in result.err
    assert "or calibrate" in result.err

    result = labapex("calibrate", elsewhere, "--out", out, *data)
    assert result.code == 0, result.err
    assert [phase["segments"] for phase in result.json["phases"]] == [1, 1, 4]
    assert 0 < result.json["phases"][2]["error"] < 1e-3
    assert "10 are needed" in result.json["lines"][0]
    before = out.read_bytes()
    result = labapex("calibrate", elsewhere, "--out", out, "--data", recorded / "job" / "data")
    assert "is part of" in result.err
    assert out.read_bytes() == before

    found = Calibration.model_validate_json(before)
    phases = tuple(phase.model_copy(update={"segments": NEEDED}) for phase in found.phases)
    out.write_bytes(canonical(found.model_copy(update={"phases": phases})))
    result = labapex("verify", elsewhere, *data, "--tolerance", out)
    assert result.code == 0, result.err
    rules = {rule["rule"]: rule for rule in result.json["rules"]}
    assert rules["replay"]["value"] == found.phases[2].error
    assert "calibrated with 1 honest runs" in rules["replay"]["detail"]


def test_a_run_of_the_own_class_calibrates_nothing(labapex: Labapex, recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "tolerance.json"
    result = labapex("calibrate", recorded / "proof", "--data", recorded / "job" / "data", "--out", out)
    assert result.code == 2
    assert "this host's class" in result.err
    assert not out.exists()
