"""Fits the sum of four numbers with a net of two types of numbers; an epoch has 3 iterations."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--width", type=int, default=6)
parser.add_argument("--momentum", type=float, default=0.9)
args = parser.parse_args()

points = torch.tensor(list(Path("data/points.bin").read_bytes()), dtype=torch.float32).reshape(-1, 4) / 255
loader = DataLoader(TensorDataset(points, points.sum(1, keepdim=True)), batch_size=4, shuffle=True)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.first = nn.Linear(4, width)
        self.last = nn.Linear(width, 1, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.last(torch.relu(self.first(self.norm(x))).double())
        return hidden.float()


model = Net(args.width)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=args.momentum)
for _ in range(args.epochs):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
