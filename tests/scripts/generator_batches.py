"""Batches from a generator function over a numpy permutation; no DataLoader."""

import numpy as np
import torch

rng = np.random.default_rng(3)
X = rng.normal(size=(48, 4)).astype(np.float32)
Y = X.sum(1, keepdims=True)


def batches(size):
    order = np.random.permutation(len(X))
    for start in range(0, len(X), size):
        chosen = order[start : start + size]
        yield torch.from_numpy(X[chosen]), torch.from_numpy(Y[chosen])


model = torch.nn.Linear(4, 1)
optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9, centered=True)
for epoch in range(3):
    total = 0.0
    for x, y in batches(8):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(epoch, total)
