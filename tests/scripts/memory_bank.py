"""Contrastive learning with a queue of old keys in a buffer and a momentum encoder."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Contrast(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(6, 4), nn.Linear(6, 4)
        self.k.load_state_dict(self.q.state_dict())
        self.k.requires_grad_(False)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(16, 4), dim=1))
        self.pointer = 0

    def forward(self, a, b):
        q = nn.functional.normalize(self.q(a), dim=1)
        with torch.no_grad():
            for ours, theirs in zip(self.k.parameters(), self.q.parameters()):
                ours.mul_(0.9).add_(theirs, alpha=0.1)
            k = nn.functional.normalize(self.k(b), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone().T], 1) / 0.2
        self.queue[self.pointer : self.pointer + len(k)] = k
        self.pointer = (self.pointer + len(k)) % len(self.queue)
        return nn.functional.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.randn(40, 6)), batch_size=8, shuffle=True)
model = Contrast()
optimizer = torch.optim.SGD(model.q.parameters(), lr=0.1, momentum=0.9)
for epoch in range(3):
    for (x,) in loader:
        optimizer.zero_grad()
        loss = model(x + 0.1 * torch.randn_like(x), x + 0.1 * torch.randn_like(x))
        loss.backward()
        optimizer.step()
