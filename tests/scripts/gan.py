"""Two networks, two optimizers, a step of each in every iteration."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
real = torch.randn(40, 2) * 0.5 + 1
loader = DataLoader(TensorDataset(real), batch_size=8, shuffle=True)
generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
critic = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1))
g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
d_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss()
fixed = torch.randn(4, 3)
for epoch in range(3):
    for (batch,) in loader:
        ones, zeros = torch.ones(len(batch), 1), torch.zeros(len(batch), 1)
        fake = generator(torch.randn(len(batch), 3))
        d_optimizer.zero_grad()
        d_loss = bce(critic(batch), ones - 0.1 * torch.rand_like(ones)) + bce(critic(fake.detach()), zeros)
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        g_loss = bce(critic(fake), ones)
        g_loss.backward()
        g_optimizer.step()
    print(generator(fixed).mean().item())
