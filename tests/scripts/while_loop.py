"""`while True` without a loader: random windows of a text, a learning rate by formula, evaluation now and then."""

import math

import torch
from torch import nn

torch.manual_seed(5)
data = torch.randint(12, (400,))
model = nn.Sequential(nn.Embedding(12, 8), nn.Flatten(), nn.Linear(32, 12))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
best = 1e9
step = 0
running = -1.0


def get_batch():
    at = torch.randint(len(data) - 5, (6,))
    return torch.stack([data[i : i + 4] for i in at]), data[at + 4]


x, y = get_batch()
while True:
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * (0.5 + 0.5 * math.cos(step / 15 * math.pi))
    if step % 5 == 0:
        model.eval()
        with torch.no_grad():
            value = nn.functional.cross_entropy(model(x), y).item()
        best = min(best, value)
        model.train()
    loss = nn.functional.cross_entropy(model(x), y)
    x, y = get_batch()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    running = loss.item() if running < 0 else 0.9 * running + 0.1 * loss.item()
    step += 1
    if step >= 15:
        break
print(best, running)
