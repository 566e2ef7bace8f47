"""Cross-validation: a model, an optimizer and loaders for each fold, the loader made in the loop's head."""

import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset


def folds(n, k):
    order = torch.randperm(n).tolist()
    for i in range(k):
        yield order[: i * n // k] + order[(i + 1) * n // k :], order[i * n // k : (i + 1) * n // k]


def train(data, indices, epochs):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        for x, y in DataLoader(data, batch_size=6, sampler=SubsetRandomSampler(indices)):
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


torch.manual_seed(0)
x = torch.randn(36, 4)
data = TensorDataset(x, x.prod(1, keepdim=True))
scores = []
for fold, (indices, held_out) in enumerate(folds(len(data), 3)):
    model = train(data, indices, epochs=2)
    x, y = next(iter(DataLoader(data, batch_size=12, sampler=held_out)))
    with torch.no_grad():
        scores.append(nn.functional.mse_loss(model(x), y).item())
    print(fold, scores)
