"""Lightning Fabric: `setup`, `setup_dataloaders`, `backward`, accumulation without synchronisation, clipping."""

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(fabric, model, optimizer, loader, epochs):
    for epoch in range(epochs):
        for i, (x, y) in enumerate(loader):
            accumulating = i % 2 == 0
            with fabric.no_backward_sync(model, enabled=accumulating):
                loss = nn.functional.cross_entropy(model(x), y)
                fabric.backward(loss)
            if not accumulating:
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
        fabric.print(epoch, loss.item())


fabric = Fabric(accelerator="cpu", devices=1)
fabric.seed_everything(0)
x = torch.randn(48, 4)
loader = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=8, shuffle=True)
with fabric.init_module():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
model, optimizer = fabric.setup(model, optimizer)
loader = fabric.setup_dataloaders(loader)
train(fabric, model, optimizer, loader, epochs=3)
