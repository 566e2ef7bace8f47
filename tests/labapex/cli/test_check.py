"""The preflight on one's own machine, for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform
from tests.labapex.proof.forge import write_job

from labapex import sandbox


@pytest.fixture(autouse=True)
def _sandbox_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if sandbox.available() is not None:
        monkeypatch.setenv(sandbox.UNCONFINED_SETTING, "1")


def job(folder: Path, **fields: object) -> Path:
    script = write_job(folder)
    spec = {"script": script.name, "epochs": 2, "budget": 1, "checkpoint_every": 2} | fields
    if (script.parent / "data").is_dir():
        spec.setdefault("data", "data")
    (script.parent / "labapex.yaml").write_text("".join(f"{name}: {value}\n" for name, value in spec.items()))
    return script.parent


def test_a_good_script_is_told_what_it_is_and_nothing_is_sent(
    labapex: Labapex, platform: MemoryPlatform, tmp_path: Path
) -> None:
    result = labapex("check", job(tmp_path / "job"), "--json")
    assert result.code == 0, result.err
    assert result.json["problem"] is None
    assert result.json["facts"]["iterations_per_epoch"] == 5
    assert result.json["replay_max_error"] == 0.0
    assert platform.seen == []


def test_a_script_that_the_platform_would_refuse_is_refused_in_its_words(labapex: Labapex, tmp_path: Path) -> None:
    result = labapex("check", job(tmp_path / "job", epochs=9))
    assert result.code == 100
    assert "refused by the preflight: the script ended after 10 iterations of 45" in result.err


def test_models_to_start_from_are_the_platforms_to_know(labapex: Labapex, tmp_path: Path) -> None:
    result = labapex("check", job(tmp_path / "job", start_from="results"))
    assert result.code == 2
    assert "start_from" in result.err
