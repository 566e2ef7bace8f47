"""Small training scripts for whole runs: a second of work each, and everything in them that a real one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

EPOCHS, PER_EPOCH = 3, 10
ITERATIONS = EPOCHS * PER_EPOCH

_HEAD = '''
"""A small network on points of a plane."""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--iterations", type=int, default=30)
parser.add_argument("--pause", type=float, default=0.0)
args = parser.parse_args()

torch.manual_seed(3)
table = torch.from_numpy(np.load("data/points.npy"))
points, labels = table[:, :-1], table[:, -1].long()
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
'''

LOADER = (
    _HEAD
    + """
loader = DataLoader(TensorDataset(points, labels), batch_size=8, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
for epoch in range(args.epochs):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        time.sleep(args.pause)
    scheduler.step()
    print(f"epoch {epoch} loss {loss.item():.4f}")
"""
)

LOOP = (
    _HEAD
    + """
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)


def get_batch():
    at = torch.randint(len(points), (8,))
    return torch.stack([points[i] for i in at]), torch.stack([labels[i] for i in at])


iteration = 0
while True:
    x, y = get_batch()
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    time.sleep(args.pause)
    iteration += 1
    if iteration == args.iterations:
        break
"""
)


def job(folder: Path, script: str = LOADER, *, pause: float = 0.0, **fields: Any) -> Path:
    """A job's folder: E = 3, I = 10, a checkpoint every 5 iterations. `fields` beat those of its labapex.yaml."""
    (folder / "data").mkdir(parents=True)
    dice = np.random.default_rng(7)
    points = dice.standard_normal((80, 8), dtype=np.float32)
    table = np.concatenate([points, (points[:, :1] * points[:, 1:2] > 0).astype(np.float32)], axis=1)
    np.save(folder / "data" / "points.npy", table)
    (folder / "train.py").write_text(script)
    spec: dict[str, Any] = {
        "name": folder.name,
        "script": "train.py",
        "args": ["--epochs", "{epochs}", "--pause", str(pause)],
        "data": "data",
        "epochs": EPOCHS,
        "checkpoint_every": 5,
        "budget": 10,
    }
    if script is LOOP:
        spec |= {"iterations_per_epoch": PER_EPOCH, "args": ["--iterations", "{iterations}", "--pause", str(pause)]}
    spec |= fields
    (folder / "labapex.yaml").write_text(yaml.safe_dump(spec))
    return folder
