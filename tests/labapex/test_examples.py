"""The examples are what they claim to be: plain scripts, and job files that say the same as the scripts do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from labapex.cli import spec_file

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["digits", "chargpt"]


@pytest.mark.parametrize("name", NAMES)
def test_the_script_knows_nothing_of_lab_apex(name: str) -> None:
    source = (EXAMPLES / name / "train.py").read_text()
    assert "labapex" not in source.lower()
    ast.parse(source)


@pytest.mark.parametrize("name", NAMES)
def test_the_job_file_is_complete(name: str) -> None:
    spec, folder = spec_file.load(EXAMPLES / name, {})
    assert folder == EXAMPLES / name
    assert (folder / spec.script).is_file()
    assert (folder / "prepare.py").is_file()
    assert (spec.epochs, spec.checkpoint_every) == (3, 5)


def test_the_loader_of_digits_follows_the_epochs_that_are_paid_for() -> None:
    spec, _ = spec_file.load(EXAMPLES / "digits", {"epochs": 7})
    assert spec.arguments() == ["--epochs", "7"]
    assert spec.iterations_per_epoch is None


def test_the_loop_of_chargpt_runs_as_many_iterations_as_are_declared() -> None:
    spec, folder = spec_file.load(EXAMPLES / "chargpt", {"epochs": 2})
    assert spec.arguments() == ["--max_iters", "40"]
    default = re.search(r'"--max_iters", type=int, default=(\d+)', (folder / "train.py").read_text())
    assert default
    assert int(default[1]) == 3 * (spec.iterations_per_epoch or 0)
