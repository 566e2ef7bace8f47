"""A sampler of the script's own whose order depends on the epoch, inside a BatchSampler."""

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Sampler, TensorDataset


class ByEpoch(Sampler):
    def __init__(self, n):
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        yield from torch.randperm(self.n, generator=generator).tolist()


torch.manual_seed(0)
x = torch.randn(40, 4)
sampler = ByEpoch(40)
loader = DataLoader(TensorDataset(x, x[:, :1] * 2), batch_sampler=BatchSampler(sampler, 8, drop_last=False))
model = nn.Linear(4, 1)
optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
for epoch in range(3):
    sampler.set_epoch(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.l1_loss(model(x), y)
        loss.backward()
        optimizer.step()
