"""Scripts that the engine cannot reproduce are refused before money is held, in words that name what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import Lab

from labapex.errors import TrainingFailed

HEAD = """
import itertools, os, time
import torch
from torch.utils.data import DataLoader, TensorDataset
x = torch.randn(40, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
rates = itertools.cycle([0.1, 0.01, 0.001])

def numbers():
    n = 0
    while True:
        yield n
        n += 1

counter = numbers()
"""

LOOP = """
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        {line}
        optimizer.step()
"""

IRREPRODUCIBLE = {
    "the operating system's entropy": "optimizer.param_groups[0]['lr'] = os.urandom(1)[0] / 2560",
    "a date": "optimizer.param_groups[0]['lr'] = int(time.time() * 1e6) % 997 / 997e2",
    "an iterator's hidden position": "optimizer.param_groups[0]['lr'] = next(rates)",
    "a generator's hidden position": "optimizer.param_groups[0]['lr'] = 0.01 / (1 + next(counter))",
}


@pytest.mark.parametrize("line", IRREPRODUCIBLE.values(), ids=IRREPRODUCIBLE)
def test_a_script_that_does_not_reproduce_itself_is_refused_with_the_name_of_what_differs(
    lab: Lab, line: str, tmp_path: Path
) -> None:
    problem = lab.preflight(HEAD + LOOP.format(line=line), tmp_path).problem
    assert problem is not None
    assert "does not reproduce itself" in problem
    assert "lr" in problem or "_parameters" in problem


def test_an_initial_state_from_the_operating_systems_entropy_is_refused(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + "model.weight.data += os.urandom(1)[0]\n" + LOOP.format(line="pass")
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert "its initial state" in problem
    assert "weight" in problem


def test_what_only_goes_wrong_at_an_epochs_end_is_found_at_preflight(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + LOOP.format(line="pass").replace(
        "    for x, y", "    optimizer.param_groups[0]['lr'] = next(rates)\n    for x, y"
    )
    problem = lab.preflight(script, tmp_path, every=2).problem
    assert problem is not None
    assert "lr" in problem or "_parameters" in problem


def test_updates_without_an_optimizer_are_refused(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + LOOP.format(line="pass").replace(
        "optimizer.step()", "model.weight.data -= 0.01 * model.weight.grad"
    )
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert "no optimizer step was seen" in problem


def test_a_step_outside_of_any_loop_is_refused(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + "model(x).sum().backward()\noptimizer.step()\n"
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert "outside of any loop" in problem


def test_iterations_that_nothing_tells_must_be_declared(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + "while True:\n    model(x).mean().backward()\n    optimizer.step()\n    optimizer.zero_grad()\n"
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert "iterations_per_epoch" in problem


def test_a_script_that_ends_before_its_epochs_do_is_told_how_to_follow_them(lab: Lab, tmp_path: Path) -> None:
    problem = lab.preflight(HEAD + LOOP.format(line="pass").replace("range(3)", "range(1)"), tmp_path).problem
    assert problem is not None
    assert "ended after 5 iterations of 15" in problem
    assert "{epochs}" in problem


def test_an_error_is_shown_as_the_script_s_own_traceback(lab: Lab, tmp_path: Path) -> None:
    problem = lab.preflight(HEAD + LOOP.format(line="loss = model(x[:, :3])"), tmp_path).problem
    assert problem is not None
    assert 'File "train.py", line 24' in problem
    assert "loss = model(x[:, :3])" in problem
    assert "labapex" not in problem
    assert str(tmp_path) not in problem


def test_a_script_that_stops_by_itself_later_fails_with_the_number_of_its_iterations(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + LOOP.format(line="pass").replace("range(3)", "range(4)") + "    if epoch == 2:\n        break\n"
    tried = lab.preflight(script, tmp_path, epochs=4, every=2)
    assert tried.problem is None
    assert tried.facts is not None
    with pytest.raises(TrainingFailed, match="ended after 15 iterations; the job's terms are 20"):
        lab.record(laboratory.contract(tried.facts, epochs=4), tmp_path)


def test_accumulation_that_begins_late_is_named(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + LOOP.format(line="pass").replace("range(3)", "range(4)")
    script = script.replace("optimizer.zero_grad()", "if epoch < 3: optimizer.zero_grad()")
    tried = lab.preflight(script, tmp_path, epochs=4)
    assert tried.facts is not None
    with pytest.raises(TrainingFailed, match="gradients survive from one iteration to the next only late"):
        lab.record(laboratory.contract(tried.facts, epochs=4), tmp_path)


def test_a_script_may_keep_the_time_without_being_refused(lab: Lab, tmp_path: Path) -> None:
    script = "import time\nstarted = time.time()\nspent = 0.0\neach = []\n" + HEAD
    line = "spent = spent + time.time() - started; each.append(round(spent, 3)); started = time.perf_counter()"
    script += LOOP.format(line=line)
    assert lab.preflight(script + "print(spent, each)\n", tmp_path).problem is None


def test_a_script_killed_for_its_memory_is_said_to_be(lab: Lab, tmp_path: Path) -> None:
    problem = lab.preflight(HEAD + LOOP.format(line="os.kill(os.getpid(), 9)"), tmp_path).problem
    assert problem is not None
    assert "SIGKILL" in problem


def test_a_script_that_tampers_with_its_own_report_is_refused(lab: Lab, tmp_path: Path) -> None:
    line = "[os.write(int(f), b'[' * 100) for f in os.listdir('/proc/self/fd') if 'result' in os.readlink('/proc/self/fd/' + f)]"
    script = HEAD + LOOP.format(line="pass").replace("optimizer.step()", line + "; os._exit(0)")
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert "cannot be read" in problem


def test_batches_from_a_generator_read_by_next_are_refused_with_what_to_do(lab: Lab, tmp_path: Path) -> None:
    script = HEAD + LOOP.format(line="pass").replace("(model(x), y)", "(model(x), y * next(counter))")
    problem = lab.preflight(script, tmp_path).problem
    assert problem is not None
    assert "a generator function or an itertools object" in problem
    assert "count in a variable instead" in problem
