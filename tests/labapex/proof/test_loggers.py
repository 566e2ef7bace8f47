"""What a script tells TensorBoard, wandb and MLflow becomes series, whether they are there or not, and changes nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.labapex.proof import lab as laboratory
from tests.labapex.proof.lab import Lab
from tests.labapex.proof.test_takeover import handed_over

from labapex.proof import loggers
from labapex.protocol.records import MAX_NAME, MAX_SERIES

Heard = list[tuple[str, float]]


def of_a_logger(name: str) -> bool:
    return any(f"{name}.".startswith(f"{logger}.") for logger in loggers.NEEDS)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What is heard of this process; afterwards it knows none of the loggers again."""
    found: Heard = []
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    loggers.install(lambda name, value: found.append((name, value)))
    yield found
    for name in [name for name in sys.modules if of_a_logger(name)]:
        del sys.modules[name]
    vars(torch.utils).pop("tensorboard", None)


def run(script: str, **names: Any) -> dict[str, Any]:
    exec(script, names)
    return names


def test_scalars_are_heard_by_name_from_each_logger(heard: Heard) -> None:
    script = """
from torch.utils.tensorboard import SummaryWriter
with SummaryWriter("runs/a", flush_secs=1) as writer:
    writer.add_scalar("loss/train", torch.tensor(0.5, requires_grad=True), 7)
    writer.add_scalars("loss", {"validation": 0.25}, global_step=7)
writer.close()

import wandb
run = wandb.init(project="p", config={"lr": 0.1})
wandb.log({"accuracy": np.float32(0.75), "head": {"norm": 2}}, step=3)
run.log({"last": True}, commit=False)
wandb.finish()

import mlflow
mlflow.set_experiment("e")
with mlflow.start_run(run_name="r") as run:
    mlflow.log_params({"lr": 0.1})
    mlflow.log_param("lr", 0.1)
    mlflow.log_metric("f1", 0.5, step=2)
    mlflow.log_metrics({"recall": float("inf")}, step=2)
    assert run.info.run_id == mlflow.active_run().info.run_id
assert mlflow.active_run() is None
"""
    import numpy as np

    run(script, torch=torch, np=np)
    assert heard == [
        ("loss/train", 0.5), ("loss/validation", 0.25), ("accuracy", 0.75), ("head.norm", 2.0), ("last", 1.0), ("f1", 0.5),
        ("recall", float("inf")),
    ]  # fmt: skip


def test_settings_given_to_wandb_are_read_back(heard: Heard) -> None:
    from argparse import Namespace

    script = """
import wandb
wandb.init(config=given)
wandb.config.update({"depth": 3})
wandb.config.width = 4
config = wandb.run.config
read = (config.lr, config["depth"], wandb.config.get("width"), dict(config), hasattr(config, "dropout"))
"""
    found = run(script, given=Namespace(lr=0.1))["read"]
    assert found == (0.1, 3, 4, {"lr": 0.1, "depth": 3, "width": 4}, False)


def test_what_is_not_kept_is_said_once_and_harms_nothing(heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
import mlflow.pytorch
import wandb
from torch.utils.tensorboard.writer import SummaryWriter
from wandb.integration.somewhere import Callback

class Mine(Callback):
    own = 1

@mlflow.trace
def traced(x):
    return x

@mlflow.trace(name="again")
def again(x):
    return x

for _ in range(3):
    mlflow.pytorch.autolog()
    wandb.watch(None, log="all")
    wandb.log({"picture": wandb.Image([[0]]), "loss": 0.5, "note": "0.25", "matrix": torch.ones(2)})
    SummaryWriter().add_histogram("weights", torch.ones(3), 1)
    with wandb.Table(columns=["a"]) as table:
        table["row"] = [row for row in table]
assert (Mine.own, traced(2), again(3), isinstance(1, wandb.Image)) == (1, 2, 3, False)
"""
    run(script, torch=torch)
    assert heard == [("loss", 0.5)] * 3
    said = capsys.readouterr().err.splitlines()
    for name in ("mlflow.pytorch.autolog", "wandb.watch", "wandb.Image", "tensorboard.SummaryWriter.add_histogram"):
        assert said.count(f"[labapex] {name} does nothing here: only scalars are kept") == 1
    assert [line for line in said if "numbers" in line] == [
        "[labapex] only numbers become series: 'picture', for one, is left out"
    ]


def test_too_many_names_and_too_long_ones_are_left_out_and_said_once(
    heard: Heard, capsys: pytest.CaptureFixture[str]
) -> None:
    script = """
import mlflow
for name in ["", "x" * (most + 1), "y" * most, "bell\\a\\ud800"] + [f"n{n}" for n in range(series)] * 2:
    mlflow.log_metric(name, 1.0)
"""
    run(script, most=MAX_NAME, series=MAX_SERIES)
    names = [name for name, _ in heard]
    assert names == ["y" * MAX_NAME, "bell  ", *[f"n{n}" for n in range(MAX_SERIES - 2)] * 2]
    assert len(capsys.readouterr().err.splitlines()) == 2


BROUGHT = {
    "wandb/__init__.py": "from wandb.sdk.wandb_run import Run\nfrom wandb.sdk import init\n",
    "wandb/sdk/__init__.py": "import wandb\ndef init():\n    run = wandb.Run()\n    wandb.log = run.log\n    return run\n",
    "wandb/sdk/wandb_run.py": "class Run:\n    def log(self, data, step=None):\n        return len(data)\n",
    "mlflow/__init__.py": "from mlflow.tracking.fluent import log_metric, log_metrics\n",
    "mlflow/tracking/__init__.py": "",
    "mlflow/tracking/fluent.py": "def log_metric(key, value, step):\n    return 'kept'\ndef log_metrics(metrics): pass\n",
}


def packages_in(folder: Path) -> Path:
    for name, text in BROUGHT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_logger_that_the_job_brings_stays_what_it_is_offline_and_is_heard(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(packages_in(tmp_path))
    script = """
import os, mlflow, wandb
wandb.init()
answers = [wandb.log({"a": 1, "b": {"c": 2}}, step=1), mlflow.log_metric("d", 3, step=1), mlflow.log_metrics({"e": 4})]
mode = os.environ["WANDB_MODE"]
try:
    mlflow.log_metric("f", 5)
except TypeError as error:
    wrong = str(error)
"""
    found = run(script)
    assert (found["answers"], found["mode"]) == ([2, "kept", None], "offline")
    assert heard == [("a", 1.0), ("b.c", 2.0), ("d", 3.0), ("e", 4.0)]
    assert "step" in found["wrong"]


def test_a_logger_that_the_host_happens_to_have_does_not_count_nor_does_a_folder_of_its_name(
    heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(packages_in(tmp_path / "host"))
    monkeypatch.setenv("LABAPEX_SITE_PACKAGES", str(tmp_path / "host"))
    assert run("import mlflow\nkept = mlflow.log_metric('d', 3)")["kept"] is None
    (tmp_path / "work" / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.setenv("LABAPEX_SITE_PACKAGES", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "work")])
    run("import wandb\nwandb.log({'a': 1})")
    assert heard == [("d", 3.0), ("a", 1.0)]


SCRIPT = """
import torch, wandb
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

config = wandb.init(config={"lr": 0.1}).config
writer = SummaryWriter()
data = TensorDataset(torch.randn(24, 3), torch.randn(24, 1))
model = nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
wandb.log({"before": 1})
for epoch in range(3):
    for x, y in DataLoader(data, batch_size=4, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        writer.add_scalar("loss", loss)
    config.lr = config.lr * 0.5
    optimizer.param_groups[0]["lr"] = config.lr
    wandb.log({"epoch": epoch, "rate": config.lr})
"""


def test_a_script_that_tells_loggers_reproduces_itself_and_each_host_tells_its_own_part(
    lab: Lab, tmp_path: Path
) -> None:
    tried = lab.preflight(SCRIPT, tmp_path)
    assert tried.problem is None
    assert tried.facts is not None
    made = lab.record(laboratory.contract(tried.facts), tmp_path)
    told: dict[str, dict[int, float]] = {}
    for step, values in made.told:
        for name, value in values.items():
            told.setdefault(name, {})[step] = value
    assert told["before"] == {0: 1.0}
    assert told["loss"] == dict(enumerate(made.losses))
    assert told["epoch"] == {6: 0.0, 12: 1.0, 18: 2.0}
    assert told["rate"] == {6: 0.05, 12: 0.025, 18: 0.0125}

    leaf = next(leaf for leaf in made.leaves if leaf.step == 8)
    state = tmp_path / "states" / f"{leaf.index}.safetensors"
    laboratory.place(SCRIPT, tmp_path / "second")
    part = lab.take_over(handed_over(made.contract, leaf), tmp_path / "second", state)
    assert part.leaves == made.leaves[leaf.index + 1 :]
    assert part.told == [(step, values) for step, values in made.told if step >= leaf.step]
