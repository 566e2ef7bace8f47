"""WeightedRandomSampler with a generator of its own, label smoothing, mixup by numpy's beta distribution."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

torch.manual_seed(0)
x, y = torch.randn(48, 4), torch.randint(3, (48,))
sampler = WeightedRandomSampler(1.0 / torch.bincount(y)[y], 40, generator=torch.Generator().manual_seed(7))
loader = DataLoader(TensorDataset(x, y), batch_size=8, sampler=sampler)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
optimizer = torch.optim.RAdam(model.parameters(), lr=0.01)
criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
for epoch in range(3):
    for x, y in loader:
        mix = np.random.beta(0.4, 0.4)
        order = torch.randperm(len(x))
        out = model(mix * x + (1 - mix) * x[order])
        loss = mix * criterion(out, y) + (1 - mix) * criterion(out, y[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
