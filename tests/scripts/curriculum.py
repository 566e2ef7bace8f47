"""A data set that grows harder with the epochs, and a dictionary of hard examples that the loop keeps."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Harder(Dataset):
    def __init__(self):
        self.x = torch.randn(40, 4)
        self.noise = 0.0

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return i, self.x[i] + self.noise * torch.randn(4), self.x[i].sum().unsqueeze(0)


torch.manual_seed(0)
data = Harder()
loader = DataLoader(data, batch_size=8, shuffle=True)
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
hard = {}
for epoch in range(3):
    data.noise = 0.2 * epoch
    for index, x, y in loader:
        losses = (model(x) - y).pow(2).squeeze(1)
        weights = torch.tensor([hard.get(int(i), 1.0) for i in index])
        optimizer.zero_grad()
        loss = (weights * losses).mean()
        loss.backward()
        optimizer.step()
        hard.update({int(i): float(v) for i, v in zip(index, losses)})
