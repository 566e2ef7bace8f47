"""Warm-up then cosine for each step, and a plateau scheduler fed with a validation loss at each epoch's end."""

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
x = torch.randn(60, 4)
train_set, val_set = random_split(TensorDataset(x, x.relu().sum(1, keepdim=True)), [40, 20])
loader, val_loader = DataLoader(train_set, batch_size=8, shuffle=True), DataLoader(val_set, batch_size=10)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
warmup = LinearLR(optimizer, 0.1, total_iters=4)
per_step = SequentialLR(optimizer, [warmup, CosineAnnealingLR(optimizer, 11)], [4])
plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5)
for epoch in range(3):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        per_step.step()
    model.eval()
    with torch.no_grad():
        value = sum(nn.functional.mse_loss(model(x), y).item() for x, y in val_loader)
    plateau.step(value)
    print(epoch, value, optimizer.param_groups[0]["lr"])
