"""Settings are foretold without training, and only where they do not depend on what training would have shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import Lab, Recording

from labapex.protocol.contract import ScriptFacts
from labapex.protocol.replay import Foretold

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
x = torch.randn(40, 4)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
LOOP = """
for epoch in range(4):
    for x, y in loader:
        optimizer.zero_grad()
        out = model(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
        # after the step
    # after the epoch
"""


def script(*, before: str = "", step: str = "pass", epoch: str = "pass") -> str:
    return HEAD + before + LOOP.replace("# after the step", step).replace("# after the epoch", epoch)


def recorded(lab: Lab, text: str, folder: Path) -> Recording:
    facts = ScriptFacts(
        loop=f"train.py:{text.splitlines().index('    for x, y in loader:') + 1}",
        iterations_per_epoch=5,
        has_loader=True,
        gradients_are_state=False,
        parameters=0,
        state_bytes=0,
    )
    laboratory.place(text, folder)
    return lab.record(laboratory.contract(facts, epochs=4), folder)


def foretold(lab: Lab, text: str, folder: Path, seconds: float = 60) -> tuple[Recording, Foretold]:
    """A recorded run of a script, and what is foretold of it."""
    recording = recorded(lab, text, folder)
    found = lab.replay(recording, laboratory.window(0), foretell=seconds).foretold
    assert found is not None
    return recording, found


def agreed(recording: Recording, found: Foretold) -> list[bool | None]:
    """Of each leaf whether its settings are the foretold ones; None where they are not foretold."""
    assert found.problem is None
    pairs = zip(recording.leaves, found.settings, strict=True)
    return [None if due is None else due == leaf.settings for leaf, due in pairs]


def test_schedules_and_hand_made_rates_are_foretold_at_every_leaf(lab: Lab, tmp_path: Path) -> None:
    cosine = "scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)"
    by_hand = "optimizer.param_groups[0]['weight_decay'] = 0.01 * epoch"
    recording, found = foretold(lab, script(before=cosine, step="scheduler.step()", epoch=by_hand), tmp_path)
    assert len({leaf.settings for leaf in recording.leaves}) == len(recording.leaves)
    assert all(agreed(recording, found))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            script(
                before="plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, 'max', patience=0, threshold=0.9)",
                epoch="plateau.step((out.argmax(1) == y).sum().item() / len(y))",
            ),
            id="a plateau of the accuracy",
        ),
        pytest.param(
            script(
                before="best = 1e9",
                epoch="best, worse = min(best, loss.item()), loss.item() > 0.9 * best\n"
                "    if worse: optimizer.param_groups[0]['lr'] *= 0.5",
            ),
            id="a plateau by hand",
        ),
        pytest.param(
            script(
                before="scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)\n"
                "scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)",
                step="scheduler.step()",
            )
            .replace("loss.backward()", "scaler.scale(loss).backward(); scale = scaler.get_scale()")
            .replace("        optimizer.step()", "        scaler.step(optimizer); scaler.update()")
            .replace("scheduler.step()", "scaler.get_scale() < scale or scheduler.step()"),
            id="a schedule that waits for the scaler",
        ),
    ],
)
def test_settings_that_hang_on_losses_are_left_open_and_never_foretold_wrongly(
    lab: Lab, text: str, tmp_path: Path
) -> None:
    found = agreed(*foretold(lab, text, tmp_path))
    assert None in found
    assert False not in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(
            script(epoch="if loss.item() > 9 or loss.item() < 1e-3: break"), "iterations of 20", id="ends early"
        ),
        pytest.param(
            script(before="class Own(torch.optim.SGD): pass\noptimizer = Own(model.parameters(), lr=0.1)"),
            "Own is no optimizer of torch's",
            id="an optimizer of its own",
        ),
        pytest.param(
            script(step="momentum = [optimizer.state[p]['momentum_buffer'] for p in model.parameters()]").replace(
                "lr=0.1", "lr=0.1, momentum=0.9"
            ),
            "KeyError",
            id="looks into the optimizer",
        ),
    ],
)
def test_a_script_that_cannot_be_run_so_says_why(lab: Lab, text: str, reason: str, tmp_path: Path) -> None:
    _, found = foretold(lab, text, tmp_path)
    assert found.settings == ()
    assert found.problem is not None
    assert reason in found.problem


def test_no_more_time_is_spent_than_was_given(lab: Lab, tmp_path: Path) -> None:
    _, found = foretold(lab, script(), tmp_path, seconds=1e-3)
    assert found.problem is not None
    assert "longer than" in found.problem


def test_a_run_without_training_leaves_no_trace_in_the_folder_that_is_replayed_in(lab: Lab, tmp_path: Path) -> None:
    saves = "torch.save(model.state_dict(), 'checkpoint.pt')"
    text = script(before="import os; resumed = os.path.exists('checkpoint.pt')", epoch=saves)
    recording = recorded(lab, text, tmp_path)
    (tmp_path / "work" / "checkpoint.pt").unlink()
    report = lab.replay(recording, laboratory.window(1), foretell=60)
    assert report.foretold is not None
    assert report.foretold.problem is None
    assert report.segments[0].state == recording.leaves[2].state
    assert not (tmp_path / "work" / "checkpoint.pt").exists()
