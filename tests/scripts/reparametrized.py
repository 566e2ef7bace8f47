"""A group added later, weight and spectral norms, pruning, checkpointing, an iterator made anew."""

import argparse

import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(4, 8))
        self.b = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.c = nn.Linear(8, 1)
        prune.l1_unstructured(self.c, "weight", amount=2)

    def forward(self, x):
        return self.c(checkpoint(lambda h: torch.relu(self.b(h)), torch.relu(self.a(x)), use_reentrant=False))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.RAdam([*model.a.parameters(), *model.c.parameters()], lr=args.lr)
    x = torch.randn(40, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8, shuffle=True)
    other = DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=8, shuffle=True)
    it = iter(other)
    for epoch in range(3):
        if epoch == 1:
            optimizer.add_param_group({"params": model.b.parameters(), "lr": 0.001})
        for x, y in loader:
            try:
                (u,) = next(it)
            except StopIteration:
                it = iter(other)
                (u,) = next(it)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y) + 0.01 * model(u).square().mean()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    main()
