"""Parameters in bfloat16, tied weights, an optimizer with state in another type."""

import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


torch.manual_seed(0)
model = Tied().to(torch.bfloat16)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for i in range(12):
    x = torch.randint(10, (6, 4))
    loss = nn.functional.cross_entropy(model(x).float(), x[:, 0])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
