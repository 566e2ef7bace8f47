"""A Trainer object that holds everything and keeps a history, a best value and a callback."""

import copy
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Meter:
    def __init__(self):
        self.total, self.count = 0.0, 0

    def update(self, value, n):
        self.total += value * n
        self.count += n

    @property
    def mean(self):
        return self.total / max(1, self.count)


class Trainer:
    def __init__(self, epochs):
        x = torch.randn(40, 5)
        self.loader = DataLoader(TensorDataset(x, x @ torch.randn(5, 1)), batch_size=8, shuffle=True, drop_last=True)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.1, amsgrad=True)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs)
        self.epochs = epochs
        self.history = []
        self.best = float("inf")
        self.best_weights = None
        self.started = time.time()
        self.on_epoch_end = lambda mean: self.history.append(mean)

    def fit(self):
        for self.epoch in range(self.epochs):
            self.meter = Meter()
            for x, y in self.loader:
                self._step(x, y)
            self.on_epoch_end(self.meter.mean)
            if self.meter.mean < self.best:
                self.best = self.meter.mean
                self.best_weights = copy.deepcopy(self.model.state_dict())
            self.scheduler.step()
            print(f"epoch {self.epoch} loss {self.meter.mean:.4f} in {time.time() - self.started:.1f} s")

    def _step(self, x, y):
        loss = (self.model(x) - y).abs().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.meter.update(loss.item(), len(x))


torch.manual_seed(0)
Trainer(epochs=3).fit()
