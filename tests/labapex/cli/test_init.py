from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labapex.cli.conftest import Labapex
from tests.labapex.memory_platform import MemoryPlatform

from labapex.cli import init, spec_file

SCRIPT = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("-n", "--epochs", type=int, default=7)
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def script(tmp_path: Path) -> Path:
    folder = tmp_path / "digits"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x.npz").write_bytes(b"x")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("epochs = 99\n")
    return folder / "train.py"


def test_what_can_be_read_in_a_script_is_written_and_loads(labapex: Labapex, script: Path) -> None:
    result = labapex("init", script.parent, "-y")
    assert result.code == 0, result.err
    spec, folder = spec_file.load(script.parent, {})
    assert (spec.name, spec.script, spec.data, spec.epochs) == ("digits", "train.py", "data", 7)
    assert spec.arguments() == ["--epochs", "7"]
    assert folder == script.parent


def test_a_file_that_is_there_is_not_replaced_unless_it_is_said(labapex: Labapex, script: Path) -> None:
    assert labapex("init", script, "-y").code == 0
    (script.parent / "labapex.yaml").write_text("mine")
    assert labapex("init", script, "-y").code == 2
    assert (script.parent / "labapex.yaml").read_text() == "mine"
    assert labapex("init", script, "-y", "--force").code == 0


def test_a_folder_without_a_script_or_with_many_is_told_what_to_do(labapex: Labapex, tmp_path: Path) -> None:
    assert "no Python file" in labapex("init", tmp_path, "-y").err
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("")
    result = labapex("init", tmp_path, "-y")
    assert result.code == 2
    assert "a.py, b.py" in result.err
    assert labapex("init", tmp_path / "a.py", "-y").code == 0


def test_what_is_not_python_is_not_run_and_named(labapex: Labapex, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("open('made', 'w') ; def")
    assert "is not Python" in labapex("init", tmp_path, "-y").err
    assert not (tmp_path / "made").exists()


def test_on_a_terminal_it_asks(labapex: Labapex, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("my run\nnone\n\n5\n2.5\n"))
    assert labapex("init", script).code == 0
    spec, _ = spec_file.load(script.parent, {})
    assert (spec.name, spec.data, spec.epochs, spec.budget_micro) == ("my run", None, 5, 2_500_000)


def test_run_in_a_folder_with_nothing_but_a_script_asks_writes_and_runs(
    labapex: Labapex, platform: MemoryPlatform, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("y\n\n\n\n3\n\ny\n"))
    result = labapex("run", script.parent)
    assert result.code == 0, result.err
    (job,) = platform.jobs.values()
    assert job.view.spec.arguments() == ["--epochs", "3"]
    assert (script.parent / "labapex.yaml").exists()


def test_packages_are_what_is_imported_and_is_not_there_anyway(labapex: Labapex, script: Path) -> None:
    (script.parent / "nets").mkdir()
    code = "import os, torch, numpy.linalg, helper, nets.big\nfrom PIL import Image\nimport wandb\nfrom . import x\n"
    script.write_text(code + "def f():\n    import einops.layers\n")
    assert labapex("init", script, "-y").code == 0
    spec, _ = spec_file.load(script.parent, {})
    assert spec.requirements == ("einops", "pillow")


def test_an_answer_that_makes_no_job_is_asked_for_again(
    labapex: Labapex, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\n../other\ndata\nnone\nmany\n0\n4\n-1\n2.5\n"))
    result = labapex("init", script)
    assert result.code == 0, result.err
    spec, _ = spec_file.load(script.parent, {})
    assert (spec.data, spec.epochs, spec.budget_micro) == ("data", 4, 2_500_000)
    assert "without '..'" in result.err


def test_run_without_a_terminal_never_guesses(labapex: Labapex, platform: MemoryPlatform, script: Path) -> None:
    for flags in ((), ("-y",)):
        result = labapex("run", script.parent, *flags)
        assert result.code == 2
        assert "labapex init" in result.err
    assert not platform.jobs


@given(
    name=st.text(min_size=1, max_size=80).filter(lambda text: text.strip() == text and text.isprintable()),
    epochs=st.integers(1, 100_000),
    flag=st.sampled_from([None, "--epochs"]),
)
def test_whatever_a_folder_is_called_the_file_reads_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, epochs: int, flag: str | None
) -> None:
    draft = init.Draft(name=name, script="train.py", data="data", flag=flag, epochs=epochs)
    file = tmp_path_factory.mktemp("draft") / "labapex.yaml"
    file.write_text(draft.text(), encoding="utf-8")
    spec, _ = spec_file.load(file, {})
    assert (spec.name, spec.epochs, spec.data) == (name, epochs, "data")
    assert init.check(draft).name == name
