"""Counters of an early stopping that does not happen, best weights kept, a log of floats."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class EarlyStopping:
    def __init__(self, patience):
        self.patience, self.bad, self.best, self.weights = patience, 0, float("inf"), None

    def __call__(self, value, model):
        if value < self.best:
            self.best, self.bad = value, 0
            self.weights = {k: v.clone() for k, v in model.state_dict().items()}
        else:
            self.bad += 1
        return self.bad >= self.patience


torch.manual_seed(0)
x = torch.randn(40, 4)
loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
model = nn.Linear(4, 1)
optimizer = torch.optim.NAdam(model.parameters(), lr=0.01)
stopping = EarlyStopping(patience=50)
history = {"loss": [], "lr": set()}
stop = False
epoch = 0
while epoch < 3 and not stop:
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        history["loss"].append(loss.item())
        history["lr"].add(optimizer.param_groups[0]["lr"])
        if stopping(loss.item(), model):
            stop = True
            break
    epoch += 1
