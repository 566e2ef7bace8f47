"""A host that kept every third state makes the others anew, bit for bit, or says why it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab, Recording

SPOILING = (SCRIPTS / "functions.py").read_text() + "\nopen('train.py', 'w').write('spoiled')\n"


@pytest.fixture
def job(lab: Lab, tmp_path: Path) -> Recording:
    """What a run leaves behind whose script overwrote itself in the end."""
    folder = tmp_path / "job"
    facts = lab.preflight(SPOILING, folder).facts
    assert facts is not None
    shutil.copytree(folder / "work", folder / "pristine")
    shutil.rmtree(folder / "states")
    made = lab.go_on(laboratory.contract(facts, keep=3), folder)
    assert (folder / "work" / "train.py").read_text() == "spoiled"
    return made


def file(folder: Path, leaf: int) -> Path:
    return folder / "states" / f"{leaf}.safetensors"


def test_states_are_made_anew_whatever_the_script_has_written_meanwhile(
    lab: Lab, job: Recording, tmp_path: Path
) -> None:
    again, missing = tmp_path / "again", (1, 2, 5)
    report = lab.regenerate(job.contract, job.folder, again, missing)
    assert (report.problem, report.made) == (None, missing)
    (job.folder / "work" / "train.py").write_text(SPOILING)
    lab.record(job.contract.model_copy(update={"keep_every": 1}), job.folder)
    for leaf in missing:
        assert file(again, leaf).read_bytes() == file(job.folder, leaf).read_bytes()


def test_what_was_made_before_a_run_was_killed_is_not_made_again(lab: Lab, job: Recording, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert lab.regenerate(job.contract, job.folder, again, (1,)).problem is None
    shutil.copy(file(again, 1), file(again, 2))  # as if it had been killed before it looked at what it had written
    file(job.folder, 0).rename(tmp_path / "aside")
    assert "kept state of leaf 0" in str(lab.regenerate(job.contract, job.folder, again, (1, 2)).problem)
    (tmp_path / "aside").rename(file(job.folder, 0))
    assert lab.regenerate(job.contract, job.folder, again, (1, 2)).problem is None
    assert file(again, 1).read_bytes() != file(again, 2).read_bytes()


def test_a_state_that_comes_out_otherwise_is_not_shown_and_the_reason_is_said(
    lab: Lab, job: Recording, tmp_path: Path
) -> None:
    script = job.folder / "pristine" / "train.py"
    script.write_text(script.read_text().replace("loss.backward()", "(2 * loss).backward()"))
    report = lab.regenerate(job.contract, job.folder, tmp_path / "again", (4,))
    assert "state of leaf 4 came out as another one" in str(report.problem)
    assert report.made == ()
    script.write_text("raise RuntimeError('broke')")
    assert "broke" in str(lab.regenerate(job.contract, job.folder, tmp_path / "again", (4,)).problem)


def test_states_of_a_run_that_was_killed_are_made_anew_as_far_as_it_had_come(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    facts = lab.preflight(SCRIPTS / "functions.py", folder).facts
    assert facts is not None
    shutil.copytree(folder / "work", folder / "pristine")
    shutil.rmtree(folder / "states")
    terms = laboratory.contract(facts, keep=3)
    lab.begin(terms, folder, until=5)
    again = tmp_path / "again"
    report = lab.regenerate(terms, folder, again, (2, 5))
    assert (report.problem, report.made) == (None, (2, 5))
    assert "leaf 6 is none of this host's" in str(lab.regenerate(terms, folder, again, (6,)).problem)
