"""Two worker processes that augment at random."""

import random

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Noisy(Dataset):
    def __init__(self):
        self.x = torch.randn(40, 4)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.x[i] + 0.1 * torch.randn(4) + random.random(), self.x[i].sum().unsqueeze(0)


torch.manual_seed(0)
loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=2)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(3):
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
