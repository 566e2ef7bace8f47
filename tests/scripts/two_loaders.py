"""Labelled and unlabelled batches side by side, by zip."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(40, 4)
labelled = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
unlabelled = DataLoader(TensorDataset(torch.randn(60, 4)), batch_size=12, shuffle=True)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for epoch in range(3):
    for step, ((x, y), (u,)) in enumerate(zip(labelled, unlabelled), start=1):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y) + 0.1 * step * (model(u) - model(u)).pow(2).mean()
        loss.backward()
        optimizer.step()
