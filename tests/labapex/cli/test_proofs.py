"""The commands that need no platform, through the command line and the real confined child."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform
from tests.labapex.proof.forge import SCRIPT, write_job

from labapex import sandbox
from labapex.proof import folder


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
    for arguments, says in (
        (("verify", proof), "--data"),
        (("verify", tmp_path), "labapex record"),
        (("verify", proof, "--policy", tmp_path / "policy.json"), "did you mean 'audit_segments'"),
        (("verify", proof, "--policy", tmp_path / "none.json"), "cannot be read"),
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
