"""An inner loop of critic steps in each generator step, drawing from one endless iterator."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(48, 2) + 2), batch_size=8, shuffle=True, drop_last=True)
generator, critic = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
g_optimizer = torch.optim.RMSprop(generator.parameters(), lr=1e-2)
c_optimizer = torch.optim.RMSprop(critic.parameters(), lr=1e-2)


data = iter(loader)
for step in range(12):
    for _ in range(3):
        try:
            (real,) = next(data)
        except StopIteration:
            data = iter(loader)
            (real,) = next(data)
        loss = critic(generator(torch.randn(8, 2)).detach()).mean() - critic(real).mean()
        c_optimizer.zero_grad()
        loss.backward()
        c_optimizer.step()
        for p in critic.parameters():
            p.data.clamp_(-0.1, 0.1)
    g_loss = -critic(generator(torch.randn(8, 2))).mean()
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()
