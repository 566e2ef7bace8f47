"""A new loader in each epoch, of another part of the data with another batch size, and one to validate made on the spot."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

torch.manual_seed(0)
x = torch.randn(64, 4)
data = TensorDataset(x, x.sum(1, keepdim=True))
train, held_out = random_split(data, [48, 16])


def batches(epoch):
    part = Subset(train, range(8 * epoch, 8 * epoch + 20 + 5 * epoch))
    return DataLoader(part, batch_size=4 + epoch, shuffle=True)


model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for epoch in range(3):
    model.train()
    loader = batches(epoch)
    for x, y in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for x, y in DataLoader(held_out, batch_size=8, shuffle=True):
            print(epoch, len(loader), nn.functional.mse_loss(model(x), y).item())
