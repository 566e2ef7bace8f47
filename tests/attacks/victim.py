"""The job that is cheated on: small, but with everything a lie can be about. Dishonest hosts edit its lines in place, because
the contract names the loop by its line, and because they would."""

from __future__ import annotations

from dataclasses import dataclass

LOADER = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Points(Dataset):
    def __init__(self):
        self.x = (torch.arange(96.0) * 0.7).sin().reshape(24, 4)
        self.y = (self.x[:, 0] > self.x[:, 1]).long()

    def __len__(self):
        return 24

    def __getitem__(self, i):
        x, y = self.x[i], self.y[i]
        x = x + 0.1 * torch.randn(4)
        return x, y


loader = DataLoader(Points(), batch_size=4, shuffle=True)
model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.8)
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        out = model(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
    scheduler.step()
"""

LOOP = """
import torch
from torch import nn

x = (torch.arange(96.0) * 0.7).sin().reshape(24, 4)
y = (x[:, 0] > x[:, 1]).long()
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(18):
    rows = torch.randint(24, (4,))
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
    loss.backward()
    optimizer.step()
"""

WIDE = """
import torch
from torch import nn

x = torch.randn(256, 512)
y = (x.sum(1) > 0).long()
model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = torch.utils.data.DataLoader(range(256), batch_size=64, shuffle=True)
for epoch in range(3):
    for rows in loader:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
"""  # large enough for torch to share the work out among its threads

CONVOLUTIONS = """
import torch
from torch import nn

widths = [3, 16, 16, 32, 32, 64]
layers = [nn.Sequential(nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU()) for a, b in zip(widths, widths[1:])]
model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))
"""

LONG = """
import random
from collections import deque
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

x = (torch.arange(96.0) * 0.7).sin().reshape(24, 4)
data = TensorDataset(x, (x[:, 0] > x[:, 1]).long())
loader = DataLoader(data, batch_size=4, shuffle=True)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.97)
seen = deque(maxlen=200)
for epoch in range(12):
    for inputs, labels in loader:
        seen.append(inputs[0])
        again = torch.stack(random.choices(seen, k=4))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels) + 0.1 * model(again).square().mean()
        loss.backward()
        optimizer.step()
    scheduler.step()
"""  # long enough for a few segments of many to be drawn


@dataclass(frozen=True)
class Job:
    script: str
    epochs: int


USUAL = Job(LOADER, epochs=3)
LONG_RUN = Job(LONG, epochs=12)


def edited(script: str, old: str, new: str) -> str:
    """The script with one piece of one line replaced. Raises `ValueError` where there is no such piece, or two."""
    if script.count(old) != 1 or "\n" in old + new:
        raise ValueError(f"{old!r} must be one piece of one line of the script")
    return script.replace(old, new)
