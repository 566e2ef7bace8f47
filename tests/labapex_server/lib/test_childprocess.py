"""The child plays a client's script: everything that it leaves is an attack until it is shown to be a report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.labapex_server.scenes import stand_in

from labapex import sandbox
from labapex.errors import MalformedInput
from labapex.protocol.replay import PreflightReport, PreflightRequest
from labapex_server.lib import childprocess

REQUEST = PreflightRequest(
    script="train.py", args=(), epochs=1, iterations_per_epoch=None, checkpoint_every=1, threads=1, seed="00" * 32
)


@pytest.fixture(autouse=True)
def _stand_in(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(settings, monkeypatch)


def run(script: str, seconds: float = 60, beat: Any = lambda: None) -> PreflightReport:
    with childprocess.private_folder("test") as folder:
        (folder / "work").mkdir()
        (folder / "work" / "train.py").write_text(script)
        return childprocess.run(
            "preflight", folder, request=REQUEST, report=PreflightReport, threads=1, seconds=seconds, beat=beat
        )


def test_a_report_comes_back_and_the_folder_is_gone(home: Path) -> None:
    report = run("fine")
    assert report.facts is not None
    assert report.facts.iterations_per_epoch == 7
    assert not list((home / "work").iterdir())


def test_a_child_that_crashes_is_told_with_its_last_words(home: Path) -> None:
    with pytest.raises(childprocess.ChildFailed, match="exit code 7") as caught:
        run("crash")
    assert "Killed by its own hand" in caught.value.said
    assert not list((home / "work").iterdir())


def test_a_child_that_hangs_is_killed_at_its_limit() -> None:
    with pytest.raises(childprocess.ChildTimedOut, match=r"within 0\.5 seconds"):
        run("hang", seconds=0.5)


def test_a_child_whose_claim_is_lost_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Exception):
        pass

    def beat() -> None:
        raise Lost

    monkeypatch.setattr(childprocess, "_BEAT", 0.2)
    with pytest.raises(Lost):
        run("hang", beat=beat)


@pytest.mark.parametrize("script", ["link", "flood"])
def test_a_report_that_is_a_link_or_a_flood_is_not_read(script: str) -> None:
    with pytest.raises(MalformedInput, match=r"report\.json"):
        run(script)


def test_a_hard_link_to_a_file_of_ours_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    os.link(secret, tmp_path / "report.json")
    with pytest.raises(MalformedInput):
        childprocess.read_hostile(tmp_path / "report.json", limit=100)


def test_a_pipe_in_a_reports_place_does_not_stop_the_platform(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(MalformedInput):
        childprocess.read_hostile(tmp_path / "report.json", limit=100)


def test_the_child_sees_none_of_our_environment_and_none_of_our_files(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sandbox.available() is not None:
        pytest.skip(f"no sandbox here: {sandbox.available()}")
    monkeypatch.setenv("LABAPEX_DATABASE_URL", "postgresql://secret")
    key = home / "keys" / "manifest"
    key.parent.mkdir(exist_ok=True)
    key.write_bytes(b"k")
    seen = json.loads(run(f"look: {key}").problem or "")
    assert not seen["secret"]
    assert "LABAPEX_DATABASE_URL" not in seen["environment"]
    assert set(seen["environment"]) >= {"TMPDIR", "LABAPEX_SITE_PACKAGES", "OMP_NUM_THREADS"}
