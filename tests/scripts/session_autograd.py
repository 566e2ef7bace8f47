"""Hand-written momentum over torch.autograd.grad: no optimizer, no backward, nothing to hook."""

import torch
from labapex.session import Session
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)
x = torch.randn(44, 6)
loader = DataLoader(TensorDataset(x, x.sin().sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
velocity = [torch.zeros_like(p) for p in model.parameters()]
run = Session()
model, velocity = run.prepare(model, velocity)
for epoch in run.epochs(3):
    for i, (x, y) in enumerate(run.batches(loader)):
        loss = nn.functional.mse_loss(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, gradients):
                v.mul_(0.9).add_(g)
                p -= 0.02 * v
        print(epoch, i, loss.item())
        run.step(loss)
