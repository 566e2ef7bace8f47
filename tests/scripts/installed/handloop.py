"""Stands for an installed library that has the training loop and the update inside: nothing of it belongs to a job."""

import torch


class Momentum:
    """An optimizer that is none of torch's."""

    def __init__(self, parameters, lr):
        self.parameters = list(parameters)
        self.lr = lr
        self.velocity = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def update(self):
        for p, v in zip(self.parameters, self.velocity):
            v.mul_(0.9).add_(p.grad)
            p.sub_(self.lr * v)
            p.grad = None


class Fitter:
    def __init__(self, model, optimizer, criterion):
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self.updates = 0
        self.position = 0

    def fit(self, loader, epochs, callbacks, limit=None):
        for epoch in range(epochs):
            self.position = 0
            for x, y in loader:
                if self.position == limit:
                    break
                self.optimizer.lr = 0.1 / (1 + self.updates)
                loss = self.criterion(self.model(x), y)
                loss.backward()
                self.optimizer.update()
                self.updates += 1
                self.position += 1
                for callback in callbacks:
                    callback.after_update(loss)
