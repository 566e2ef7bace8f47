"""An LSTM whose hidden state, detached, is carried from window to window."""

import torch
from torch import nn

torch.manual_seed(0)
text = torch.randint(10, (4, 61))
embedding, rnn, head = nn.Embedding(10, 8), nn.LSTM(8, 8, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(8, 10)
model = nn.ModuleList([embedding, rnn, head])
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)


def run_epoch(hidden=None):
    total = 0.0
    for start in range(0, 60, 10):
        x, y = text[:, start : start + 10], text[:, start + 1 : start + 11]
        if hidden is not None:
            hidden = tuple(h.detach() for h in hidden)
        out, hidden = rnn(embedding(x), hidden)
        loss = nn.functional.cross_entropy(head(out).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()
        total += loss.item()
    return hidden, total


carried = None
for epoch in range(3):
    carried, total = run_epoch(carried)
    print(epoch, total)
