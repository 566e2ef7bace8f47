"""The explicit loops round a usual optimizer and scheduler, with an evaluation between epochs."""

import torch
from labapex.session import Session
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(8)
x = torch.randn(40, 5)
data = TensorDataset(x, x.sum(1, keepdim=True))
loader, test = DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=20)
model = nn.Linear(5, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)
run = Session()
model, optimizer, scheduler = run.prepare(model, optimizer, scheduler)
for epoch in run.epochs(3):
    for x, y in run.batches(loader):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        (8 * loss).backward()
        optimizer.step()
        print(loss.item())
        run.step(loss)
    scheduler.step()
    with torch.no_grad():
        print(sum(nn.functional.mse_loss(model(x), y).item() for x, y in test))
