"""What cannot be seen from outside is said in five lines: they hold in preflight, record and replay, and change nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import SCRIPTS, Lab

from labapex.proof.declared import FIVE_LINES
from labapex.proof.policy import decide
from labapex.proof.rules import judge, replay_max_error
from labapex.protocol.records import uncolumn

INSTALLED = SCRIPTS / "installed"
SOURCES = Path(__file__).parents[3] / "client_sdk"
NO_SESSION = """
class Session:
    def prepare(self, *objects): return objects if len(objects) > 1 else objects[0]
    def epochs(self, count): return range(count)
    def batches(self, loader): return loader
    def steps(self, count): return range(count)
    def step(self, loss=None): pass
"""
# script: iterations of an epoch where no loader tells them
DECLARED = {"session_autograd": None, "session_data": None, "session_library": 5, "session_usual": None}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One whose Python has the library installed."""
    sys.path.append(str(INSTALLED))
    laboratory = Lab()
    sys.path.remove(str(INSTALLED))
    yield laboratory
    laboratory.close()


def plain(script: str, folder: Path, *path: Path) -> str:
    """What `python train.py` prints, with nothing but torch and `path` to import."""
    (folder / "train.py").write_text(script)
    code = "import sys; sys.modules.pop('labapex', None); exec(compile(open('train.py').read(), 'train.py', 'exec'))"
    line = [sys.executable, "-P", "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", DECLARED)
def test_a_script_that_says_it_in_five_lines_is_recorded_and_reproduced_bit_for_bit(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    tried = lab.preflight(SCRIPTS / f"{name}.py", tmp_path, per_epoch=DECLARED[name])
    assert tried.problem is None
    assert tried.facts is not None
    assert tried.facts.parameters > 0

    recording = lab.record(laboratory.contract(tried.facts), tmp_path)
    assert len(recording.losses) == recording.contract.iterations == 3 * tried.facts.iterations_per_epoch
    said = [line.split() for line in (tmp_path / "train.log").read_text().splitlines()]
    assert set(map(repr, recording.losses)) <= {word for line in said for word in line}  # it is the loss that was meant

    for leaf in (1, len(recording.leaves) - 3):  # a window by itself: no earlier one has led the process there
        (segment,) = lab.replay(recording, laboratory.window(leaf)).segments
        assert segment.state == recording.leaves[leaf + 1].state
        assert list(uncolumn(segment.losses)) == recording.losses[segment.start : segment.stop]

    whole = laboratory.challenge(recording, segments=100, ends=True)
    report = lab.replay(recording, whole)
    assert report.problem is None
    evidence = laboratory.evidence(recording, whole, report)
    results = judge(evidence)
    assert decide(results)[0] == "verified", results
    assert replay_max_error(evidence) == 0.0
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert sum(t.numel() for t in weights.values()) >= tried.facts.parameters
    assert not any(name.startswith("prepared") for name in weights)
    if name == "session_data":
        assert sorted(weights) == ["bias", "weight"]


@pytest.mark.parametrize("name", DECLARED)
def test_plain_python_gives_the_same_losses_with_the_lines_and_without(name: str, tmp_path: Path) -> None:
    script = (SCRIPTS / f"{name}.py").read_text()
    without = script.replace("from labapex.session import Session\n", NO_SESSION)
    assert without != script
    printed = plain(script, tmp_path, SOURCES, INSTALLED)
    assert len(printed.splitlines()) >= 15
    assert printed == plain(without, tmp_path, INSTALLED)


def test_the_lines_bring_no_torch_and_no_engine_along() -> None:
    code = (
        "import sys; from labapex.session import Session; run = Session(); x = object(); assert run.prepare(x) is x; "
        "run.step(); assert list(run.steps(2)) == list(run.epochs(2)) == [0, 1]; assert run.batches(x) is x; "
        "print([m for m in ('torch', 'numpy', 'pydantic', 'labapex.proof.runtime') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["session_autograd", "session_library"])
def test_without_the_lines_they_are_what_the_preflight_answers(lab: Lab, name: str, tmp_path: Path) -> None:
    script = (SCRIPTS / f"{name}.py").read_text().replace("from labapex.session import Session\n", NO_SESSION)
    problem = lab.preflight(script, tmp_path, per_epoch=5).problem
    assert problem is not None
    assert FIVE_LINES in problem
    assert len(FIVE_LINES.splitlines()) == 5


def test_an_optimizer_in_a_librarys_loop_is_answered_with_the_lines_too(lab: Lab, tmp_path: Path) -> None:
    script = (SCRIPTS / "session_library.py").read_text().replace("from labapex.session import Session\n", NO_SESSION)
    script = script.replace("Momentum(model.parameters(), 0.1)", "Torch(model.parameters(), 0.1)")
    script = "import torch\nclass Torch(torch.optim.SGD):\n    def update(self): self.step()\n" + script
    problem = lab.preflight(script, tmp_path, per_epoch=5).problem
    assert problem is not None
    assert "outside of any loop" in problem
    assert FIVE_LINES in problem


def test_the_documentation_shows_the_lines_that_the_preflight_answers() -> None:
    text = (SOURCES.parent / "docs" / "proof-of-learning.md").read_text()
    assert f"```python\n{textwrap.dedent(FIVE_LINES)}\n```" in text


def test_a_script_that_would_go_on_ends_with_its_contract(lab: Lab, tmp_path: Path) -> None:
    script = (SCRIPTS / "session_autograd.py").read_text().replace("epochs(3)", "epochs(10**9)")
    tried = lab.preflight(script, tmp_path, epochs=2)
    assert tried.facts is not None, tried.problem
    recording = lab.record(laboratory.contract(tried.facts, epochs=2), tmp_path)
    assert len(recording.losses) == recording.leaves[-1].step == 2 * 6


def test_the_five_lines_can_be_pasted(tmp_path: Path) -> None:
    lines = textwrap.dedent(FIVE_LINES)
    plain("model = optimizer = loss = None\nloader = [1, 2]\n" + lines + "\nprint(batch)\n", tmp_path, SOURCES)


def test_tensors_and_modules_of_one_script_keep_names_of_their_own(lab: Lab, tmp_path: Path) -> None:
    script = (SCRIPTS / "session_data.py").read_text()
    script = script.replace("weight, bias = run.prepare(weight, bias)", "net = run.prepare(Net(), [weight, bias])[0]")
    script = script.replace("+ bias", "+ net(x[at]) + bias").replace(
        "update([weight, bias]", "update([weight, bias, *net.parameters()]"
    )
    script = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(5, 1)\n" + script
    tried = lab.preflight(script, tmp_path)
    assert tried.facts is not None, tried.problem
    assert tried.facts.parameters == 12
    recording = lab.record(laboratory.contract(tried.facts), tmp_path)
    assert lab.replay(recording, laboratory.challenge(recording, ends=True)).problem is None
    weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert sorted(weights) == ["bias", "net.bias", "net.weight", "weight"]


WRONG = {
    "no loop of the session": ("run.batches(loader)", "loader", "outside of a loop over run.batches"),
    "no loss": ("run.step(loss)", "run.step(model(x))", "takes this turn's loss"),
    "nothing trained": (
        "run.prepare(model, velocity)",
        "run.prepare(3, 4); model, velocity = kept",
        "nothing that is trained",
    ),
    "prepared too late": ("loss = ", "run.prepare(model); loss = ", "call it before"),
}


@pytest.mark.parametrize(("old", "new", "words"), WRONG.values(), ids=WRONG)
def test_lines_that_are_wrong_are_answered_in_words(lab: Lab, old: str, new: str, words: str, tmp_path: Path) -> None:
    script = (
        (SCRIPTS / "session_autograd.py")
        .read_text()
        .replace(old, new)
        .replace("run = ", "kept = model, velocity\nrun = ")
    )
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert words in problem


def test_what_a_library_keeps_to_itself_is_found_at_preflight(lab: Lab, tmp_path: Path) -> None:
    """The library's count of updates decides its rate; a script that does not prepare its holder is refused."""
    script = (
        (SCRIPTS / "session_library.py")
        .read_text()
        .replace("model, fitter, fitter.optimizer", "model, fitter.optimizer")
    )
    problem = lab.preflight(script, tmp_path, per_epoch=5).problem
    assert problem is not None
    assert "does not reproduce itself" in problem
