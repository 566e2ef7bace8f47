"""Layers are unfrozen, and given to the optimizer, at the second epoch."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(40, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
body, head = nn.Linear(4, 8), nn.Linear(8, 1)
body.requires_grad_(False)
optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
for epoch in range(3):
    if epoch == 1:
        body.requires_grad_(True)
        optimizer.add_param_group({"params": body.parameters(), "lr": 0.001})
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(head(body(x).relu()), y)
        loss.backward()
        optimizer.step()
